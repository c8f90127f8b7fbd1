//! `kubectl volferry logs`: what the agents of a clone log.

use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, Client};

use super::in_words;
use crate::api::VolumeClone;
use crate::names::{End, name};

/// Says each line that the agents log, or that of `end` does; with its end where there may be two. With
/// `follow` until the agents end, or for as long as `say` says that somebody listens.
///
/// # Errors
/// One for each agent whose log can't be had or breaks off; what the other logs was said.
pub async fn logs(
    client: &Client,
    clone: &VolumeClone,
    end: Option<End>,
    follow: bool,
    say: impl Fn(&str) -> bool,
) -> Result<(), Vec<String>> {
    let wanted = End::ALL
        .into_iter()
        .filter(|one| end.is_none_or(|end| end == *one));
    let say = &say;
    let each = wanted.map(|one| async move {
        let pods: Api<Pod> = Api::namespaced(client.clone(), one.namespace(clone));
        let params = LogParams {
            follow,
            ..LogParams::default()
        };
        let failed = |error| format!("no log of the {} agent: {error}", one.label());
        let lines = pods.log_stream(&name(clone, one), &params).await;
        let mut lines = lines.map_err(|error| failed(in_words(error)))?.lines();
        while let Some(line) = lines
            .try_next()
            .await
            .map_err(|error| failed(error.to_string()))?
        {
            let is_heard = match end {
                Some(_) => say(&line),
                None => say(&format!("{:8}{line}", one.label())),
            };
            if !is_heard {
                break;
            }
        }
        Ok(())
    });
    let ended = futures::future::join_all(each).await;
    let failures: Vec<_> = ended.into_iter().filter_map(Result::err).collect();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures)
    }
}
