//! qemu-img convert from a qemu-nbd that exports the source, both ends verified.

use super::{Job, Peer, no_tree};
use crate::error::Error;
use crate::port;
use crate::process::Group;

/// Why pulling, and why these options: README.md has what was tried.
pub(crate) const PEER: Peer = Peer {
    name: "qemu-img",
    programs: &["qemu-img", "qemu-nbd"],
    version_flag: "--version",
    how: "qemu-img convert -W -m 8 pulls from qemu-nbd; cache=none at both ends",
    refusal: no_tree,
    run,
};

fn run(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    let port = port::free()?;
    let credentials = |end: &str, directory: &std::path::Path| {
        let directory = directory.display();
        format!("tls-creds-x509,id=tls,endpoint={end},dir={directory},verify-peer=yes")
    };
    let mut server = job.tools.command("qemu-nbd");
    server
        .arg("--object")
        .arg(credentials("server", &job.pki.server.directory));
    server.args([
        "--tls-creds=tls",
        "--bind=127.0.0.1",
        "--format=raw",
        "--persistent",
    ]);
    server.args(["--shared=8", "--read-only", "--cache=none", "--aio=native"]);
    server.arg(format!("--port={port}")).arg(&job.stage.source);
    group.serve(server, port)?;

    let mut client = job.tools.command("qemu-img");
    client.arg("convert");
    client
        .arg("--object")
        .arg(credentials("client", &job.pki.client.directory));
    client.args([
        "-n", "-O", "raw", "-W", "-m", "8", "-T", "none", "-t", "none",
    ]);
    if !job.stage.is_device() {
        // True, and what an operator who has just made the file would say.
        client.arg("--target-is-zero");
    }
    client.arg("--image-opts").arg(format!(
        "driver=nbd,host=127.0.0.1,port={port},tls-creds=tls,tls-hostname=localhost"
    ));
    let client = group.start({
        client.arg(&job.stage.target);
        client
    })?;
    group.wait(client)
}
