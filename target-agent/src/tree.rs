//! Receiving a tree.
//!
//! ```text
//! N data connections (tasks) → queue → writers (OS threads: check, decode, apply) → owner
//! ```
//!
//! A tree is cloned in one session. What a lost session left is replaced by the next attempt. A block
//! volume that comes to a directory becomes the file `disk.img` in it.

use std::os::unix::fs::MetadataExt;

use tokio::io::{AsyncRead, AsyncWrite};
use volferry_agent::failure;
use volferry_agent::outcome::{Outcome, cancelled};
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::message::Hello;
use volferry_protocol::receipt::Verified;
use volferry_storage::tree::{DISK_IMAGE, TreeTarget, TreeTargetOptions};

use crate::driver::Ask;
use crate::greeter::{Greeted, Greeter, Purpose, refuse};
use crate::{Resume, TargetConfig, open_volume, serve_volume};

mod data;
mod driver;
mod writers;

/// Claims the directory, before anybody may connect.
pub(crate) fn open(config: &TargetConfig) -> Result<TreeTarget, Failure> {
    let is_of_block = config.state_dir.is_some()
        || config.resume_from.is_some()
        || config.resume == Resume::Digest
        || config.verify != Verified::Digest;
    if is_of_block {
        let text = "a tree is cloned without a journal, and verified by its digest: --state-dir, \
                    --resume, --delta and --verify are for block volumes";
        return Err(Failure::new(FailureCode::Usage, text));
    }
    let options = TreeTargetOptions {
        overwrite: config.options.overwrite,
        delete_extra: config.delete_extra,
        direct: config.options.direct,
    };
    TreeTarget::open(&config.volume, options).map_err(|error| failure::of_tree(End::Target, &error))
}

/// Receives one clone into `target`.
pub(crate) async fn serve<S>(
    config: &TargetConfig,
    context: &Context,
    mut target: TreeTarget,
    greeter: &mut Greeter<S>,
) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut epoch = 0;
    loop {
        let mut shutdown = context.shutdown.clone();
        let Greeted {
            purpose,
            stream,
            peer_address,
        } = tokio::select! {
            greeted = greeter.next() => greeted?,
            failure = context.patience.exhausted() => return Err(failure),
            () = shutdown.requested() => return Err(cancelled()),
        };
        let Purpose::Control(hello) = purpose else {
            tracing::warn!(%peer_address, "a data connection came without a session");
            context.metrics.count_rejection("no_session");
            continue;
        };
        if hello.tree.is_none() {
            return serve_image(config, context, target, *hello, stream, greeter).await;
        }
        epoch += 1;
        match driver::run(config, context, target, *hello, epoch, stream, greeter).await {
            driver::TreeEnd::Over(outcome) => {
                if let Err(failure) = &*outcome {
                    context.metrics.count_failure(failure);
                }
                return *outcome;
            }
            driver::TreeEnd::Untouched(untouched, failure) => {
                // Whoever that was did not get as far as the directory: the right one may still
                // come.
                tracing::warn!(
                    code = failure.code.label(),
                    "a session ended early: {failure}"
                );
                context.patience.note(&failure);
                context.metrics.count_failure(&failure);
                target = untouched;
            }
        }
    }
}

/// Receives a block volume into the file `disk.img` of `target`.
async fn serve_image<S>(
    config: &TargetConfig,
    context: &Context,
    target: TreeTarget,
    hello: Hello,
    stream: S,
    greeter: &mut Greeter<S>,
) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let image = TargetConfig {
        volume: config.volume.join(DISK_IMAGE),
        ..config.clone()
    };
    let ask = check_room(&image, &target, &hello)
        .and_then(|()| open_volume(&image, context.progress.clone_id()))
        .and_then(|mut held| {
            let epoch = held.fence.ask(&hello, Ok::<(), Failure>(()))?;
            Ok((held, epoch))
        });
    match ask {
        Ok((held, epoch)) => {
            let ask = Ask {
                hello,
                epoch,
                stream,
            };
            serve_volume(&image, context, held, Some(ask), greeter).await
        }
        Err(failure) => {
            refuse(stream, failure.clone()).await;
            context.metrics.count_failure(&failure);
            Err(failure)
        }
    }
}

/// Refuses a block volume up front that can't fit beside what the filesystem needs for itself.
fn check_room(image: &TargetConfig, target: &TreeTarget, hello: &Hello) -> Result<(), Failure> {
    let room = target
        .room()
        .map_err(|error| failure::of_tree(End::Target, &error))?;
    let held = std::fs::metadata(&image.volume).map_or(0, |metadata| metadata.blocks() * 512);
    let kept = room.total_bytes as f64 * image.filesystem_overhead;
    let usable = room.available_bytes.saturating_add(held) as f64 - kept;
    if hello.volume_size as f64 <= usable {
        return Ok(());
    }
    let text = format!(
        "target volume: {} can take {usable:.0} bytes beside the {kept:.0} that are kept for the \
         filesystem, and the volume has {}; choose a larger target",
        image.volume.display(),
        hello.volume_size
    );
    Err(Failure::new(FailureCode::TargetNoSpace, text))
}
