//! nbdcopy into an nbdkit that exports the target, both ends verified.

use super::{Job, Peer, no_tree};
use crate::error::Error;
use crate::port;
use crate::process::Group;

/// Why pushing, and why these numbers: README.md has what was tried.
pub(crate) const PEER: Peer = Peer {
    name: "nbdcopy",
    programs: &["nbdcopy", "nbdkit"],
    version_flag: "--version",
    how: "nbdcopy pushes into nbdkit's file plugin; 2 connections, requests of 1 MiB",
    refusal: no_tree,
    run,
};

fn run(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    let port = port::free()?;
    let mut server = job.tools.command("nbdkit");
    server.args(["--foreground", "--ipaddr=127.0.0.1", "--threads=2"]);
    server.arg(format!("--port={port}"));
    server.args(["--tls=require", "--tls-verify-peer"]);
    server.arg(format!(
        "--tls-certificates={}",
        job.pki.server.directory.display()
    ));
    server.arg("file").arg(&job.stage.target);
    group.serve(server, port)?;

    let mut client = job.tools.command("nbdcopy");
    client.args(["--connections=2", "--threads=2", "--requests=8"]);
    client.args(["--request-size=1048576", "--flush"]);
    if !job.stage.is_device() {
        // True, and what an operator who has just made the file would say.
        client.arg("--target-is-zero");
    }
    let certificates = job.pki.client.directory.display();
    client.arg(&job.stage.source);
    client.arg(format!(
        "nbds://127.0.0.1:{port}/?tls-certificates={certificates}"
    ));
    let client = group.start(client)?;
    group.wait(client)
}
