//! Receiving a tree.
//!
//! ```text
//! N data connections (tasks) → queue → writers (OS threads: check, decode, apply) → owner
//! ```
//!
//! What is finished is flushed and journaled every few seconds, in the target directory itself, and
//! the next session goes on from there. A block volume that comes to a directory becomes the file
//! `disk.img` in it.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;
use volferry_agent::failure;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::message::Hello;
use volferry_protocol::receipt::Verified;
use volferry_protocol::session::Fence;
use volferry_protocol::tree::proof::Proof;
use volferry_protocol::tree::session::Earlier;
use volferry_storage::tree::{DISK_IMAGE, Reuse, TreeError, TreeTarget, TreeTargetOptions};

use crate::greeter::{Greeter, refuse};
use crate::session::{Ask, next_source, serve_sessions};
use crate::{Resume, TargetConfig, open_volume, serve_volume};

use proof::ProofFile;

pub(crate) use driver::HeldTree;

mod data;
mod driver;
mod proof;
mod writers;

/// Claims the directory for `clone_id`, before anybody may connect.
pub(crate) fn open(config: &TargetConfig, clone_id: Uuid) -> Result<HeldTree, Failure> {
    let options = TreeTargetOptions {
        overwrite: config.options.overwrite,
        delete_extra: config.delete_extra,
        direct: config.options.direct,
        read_back: config.verify == Verified::Readback,
        reuse: match config.resume {
            Resume::Nothing => Reuse::Nothing,
            Resume::Journal => Reuse::Journal,
            Resume::Digest if config.trusts_times => Reuse::Times,
            Resume::Digest => Reuse::Content,
        },
    };
    let opened = config
        .state_dir
        .as_deref()
        .map(|directory| ProofFile::open(directory, clone_id))
        .transpose()?;
    let (proofs, proof) = opened.unzip();
    let proof = proof.flatten();
    let of_tree = |error| failure::of_tree(End::Target, &error);
    let mut target = TreeTarget::claim(&config.volume, clone_id, options).map_err(of_tree)?;
    let known = [
        proof.as_ref().map(|proof| (proof.epoch, &proof.remembered)),
        Some((target.epoch(), target.remembered())),
    ];
    let latest = known.into_iter().flatten().max_by_key(|(epoch, _)| *epoch);
    let fence = latest.map_or_else(Fence::default, |(epoch, remembered)| {
        Fence::after(epoch, remembered)
    });
    let proof = proof.filter(|_| config.resume != Resume::Nothing);
    let earlier = match proof {
        Some(proof) => go_on_from(proof, config, &mut target).map_err(of_tree)?,
        None => Earlier::default(),
    };
    if earlier.receipt.is_none() {
        // A volume that comes becomes a file of the directory, which may be there already. Whether the
        // clone goes on in it, says the volume's own journal.
        let keeps_journal = config.state_dir.is_some() || config.resume_from.is_some();
        let expected = keeps_journal.then_some(DISK_IMAGE);
        target.check_free(expected).map_err(of_tree)?;
    }
    Ok(HeldTree {
        fence,
        target: Some(target),
        earlier,
        repairs: 0,
        proofs: proofs.map(Arc::new),
    })
}

/// Ends what an earlier run has proven, if that is what the directory holds, and gives the receipt that
/// its source is still to hear.
fn go_on_from(
    proof: Proof,
    config: &TargetConfig,
    target: &mut TreeTarget,
) -> Result<Earlier, TreeError> {
    let path = config.volume.display();
    if !target.bears_out(proof.witness)? {
        tracing::warn!(%path, "the directory does not hold what was proven: the proof is not used");
        return Ok(Earlier::default());
    }
    let selinux = proof.receipt.tree.as_ref().is_some_and(|tree| tree.selinux);
    target.conclude(proof.root.as_ref(), selinux)?;
    tracing::info!(%path, "the clone is proven: its source may not have heard of it");
    // Where the directory may be written whatever it holds, a new run of the source agent may be there for
    // what the source is now.
    let may_write = config.options.overwrite || config.resume == Resume::Digest;
    Ok(Earlier {
        receipt: Some(Box::new(proof.receipt)),
        receipt_for: proof.remembered.holder.filter(|_| may_write),
        ..Earlier::default()
    })
}

/// Refuses what a directory has no use for when a tree comes. A volume that comes to a directory can
/// use all of it.
fn check_options(config: &TargetConfig) -> Result<(), Failure> {
    let usage = |text: &str| Err(Failure::new(FailureCode::Usage, text));
    if config.resume_from.is_some() {
        return usage(
            "--resume-from is for block volumes: the journal of a tree is in the target directory \
             itself, and goes where that goes",
        );
    }
    if config.verify == Verified::None {
        return usage(
            "a tree is verified by its digest at least: --verify none is for block volumes",
        );
    }
    Ok(())
}

/// Receives one clone into `held`.
pub(crate) async fn serve<S>(
    config: &TargetConfig,
    context: &Context,
    mut held: HeldTree,
    greeter: &mut Greeter<S>,
) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut asked = None;
    if held.earlier.receipt.is_some() {
        check_options(config)?;
    } else {
        let ask = next_source(context, &mut held.fence, greeter).await?;
        if ask.hello.tree.is_none()
            && let Some(target) = held.target.take()
        {
            // The volume has a journal of its own.
            drop(held);
            return serve_image(config, context, target, ask.hello, ask.stream, greeter).await;
        }
        if let Err(failure) = check_options(config).and_then(|()| held.check_free()) {
            refuse(ask.stream, failure.clone()).await;
            context.metrics.count_failure(&failure);
            return Err(failure);
        }
        asked = Some(ask);
    }
    let outcome = serve_sessions(config, context, &mut held, asked, greeter).await;
    if let (Ok(_), Some(proofs)) = (&outcome, &held.proofs)
        // A later clone by the same name must not end with this one's receipt.
        && let Err(failure) = proofs.remove()
    {
        tracing::warn!("{failure}");
    }
    outcome
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
    let opened = check_room(&image, &target, &hello)
        .and_then(|()| open_volume(&image, context.progress.clone_id()));
    let mut held = match opened {
        Ok(held) => held,
        Err(failure) => {
            refuse(stream, failure.clone()).await;
            context.metrics.count_failure(&failure);
            return Err(failure);
        }
    };
    // Only the volume's own journal knows who was shut out. That another may come is no reason to end.
    let asked = match held.fence.ask(&hello, Ok::<(), Failure>(())) {
        Ok(epoch) => Some(Ask {
            hello,
            epoch,
            stream,
        }),
        Err(failure) => {
            tracing::warn!("a session was turned away: {failure}");
            context.metrics.count_rejection(failure.code.label());
            refuse(stream, failure).await;
            None
        }
    };
    serve_volume(&image, context, held, asked, greeter).await
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
