//! The product: as one command with both agents inside, and as two agents as in two pods. The only
//! file that knows volferry's command line.

use super::{Job, Peer, never};
use crate::error::Error;
use crate::port;
use crate::process::Group;

/// Both agents in one process.
pub(crate) const ONE_PROCESS: Peer = Peer {
    name: "volferry",
    programs: &["volferry"],
    version_flag: "--version",
    how: "volferry copy --overwrite, both agents in one process",
    refusal: never,
    run: one_process,
};

/// A process for each agent, identities minted beforehand as a controller would.
pub(crate) const TWO_PROCESSES: Peer = Peer {
    name: "volferry-two-process",
    programs: &["volferry", "volferry-source", "volferry-target"],
    version_flag: "--version",
    how: "volferry-target --overwrite and volferry-source, a process each",
    refusal: never,
    run: two_processes,
};

fn one_process(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    let mut copy = job.tools.command("volferry");
    copy.arg("copy")
        .args([&job.stage.source, &job.stage.target]);
    let copy = group.start({
        copy.args(["--overwrite", "--json"]);
        copy
    })?;
    group.wait(copy)
}

fn two_processes(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    let identities = job.scratch.join("identities");
    let mut mint = job.tools.command("volferry");
    mint.args(["identity", "new", "--clone-id"])
        .arg(uuid::Uuid::new_v4().to_string());
    mint.arg("--out").arg(&identities);
    let mint = group.start(mint)?;
    group.wait(mint)?;

    let port = port::free()?;
    let address = format!("127.0.0.1:{port}");
    let mut target = job.tools.command("volferry-target");
    target
        .arg("--volume")
        .arg(&job.stage.target)
        .args(["--listen", &address, "--overwrite"]);
    target.arg("--identity").arg(identities.join("target"));
    target
        .arg("--receipt")
        .arg(job.scratch.join("target-receipt.json"));
    let target = group.serve(target, port)?;

    let mut source = job.tools.command("volferry-source");
    source
        .arg("--volume")
        .arg(&job.stage.source)
        .args(["--target", &address]);
    source.arg("--identity").arg(identities.join("source"));
    source
        .arg("--receipt")
        .arg(job.scratch.join("source-receipt.json"));
    let source = group.start(source)?;
    group.wait(source)?;
    group.wait(target)
}
