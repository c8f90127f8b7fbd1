//! The controller as it is installed in a cluster, as far as a user may see it.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};

use crate::plugin::in_words;
use crate::world::Settings;

/// What deploy/ calls the controller's Deployment.
const DEPLOYMENT: &str = "volferry-controller";

/// How the controller in `namespace` was set up, in the words of its Deployment.
///
/// # Errors
/// When it is not there or can't be read, in words that say what to pass instead.
pub async fn settings(client: &Client, namespace: &str) -> Result<Settings, String> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let found = deployments.get(DEPLOYMENT).await.map_err(|error| {
        let error = in_words(error);
        format!(
            "the controller's image can't be read from Deployment {namespace}/{DEPLOYMENT}: {error}; pass --image"
        )
    })?;
    of_deployment(&found, namespace).ok_or_else(|| {
        format!("Deployment {namespace}/{DEPLOYMENT} names no --image; pass --image")
    })
}

fn of_deployment(deployment: &Deployment, namespace: &str) -> Option<Settings> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let words: Vec<_> = pod
        .containers
        .iter()
        .flat_map(|container| container.command.iter().chain(&container.args).flatten())
        .collect();
    let value = |flag: &str| {
        let given = words.iter().enumerate().find_map(|(at, word)| {
            let rest = word.strip_prefix(flag)?;
            match rest.strip_prefix('=') {
                Some(value) => Some(value),
                None if rest.is_empty() => words.get(at + 1).map(|next| next.as_str()),
                None => None,
            }
        });
        given.map(str::to_owned)
    };
    Some(Settings {
        image: value("--image")?,
        image_pull_policy: value("--image-pull-policy")
            .unwrap_or_else(|| "IfNotPresent".to_owned()),
        namespace: namespace.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_agents_run_is_read_from_the_controllers_arguments() {
        let of = |args: &[&str]| {
            let deployment = json!({"spec": {"selector": {}, "template": {"spec": {"containers": [
                {"name": "controller", "image": "other", "args": args}]}}}});
            of_deployment(
                &serde_json::from_value(deployment).unwrap(),
                "volferry-system",
            )
        };
        let found = of(&["--log=info", "--image=here/volferry:2"]).unwrap();
        assert_eq!(found.image, "here/volferry:2");
        assert_eq!(found.image_pull_policy, "IfNotPresent");
        let found = of(&["--image", "x", "--image-pull-policy", "Always"]).unwrap();
        assert_eq!((&*found.image, &*found.image_pull_policy), ("x", "Always"));
        assert_eq!(of(&["--image-pull-policy=Always"]), None);
    }
}
