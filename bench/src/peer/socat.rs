//! socat with OpenSSL: a pipe with TLS in it, the least that one could write by hand. It knows
//! nothing of holes and sends them as zeros.

use std::ffi::OsStr;
use std::process::Command;

use super::{Job, Peer, never};
use crate::error::Error;
use crate::pki::Credentials;
use crate::port;
use crate::process::Group;

/// Its TLS library hands over 16 KiB at a time, whatever the block size.
pub(crate) const PEER: Peer = Peer {
    name: "socat",
    programs: &["socat"],
    version_flag: "-V",
    how: "socat -u -b 1048576 over OPENSSL, through the page cache; tar with xattrs and ACLs before \
          and behind it for a directory",
    refusal: never,
    run,
};

fn run(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    if job.stage.tree.is_some() {
        return run_tar(job, group);
    }
    let port = port::free()?;
    let mut server = job.tools.command("socat");
    server.args(["-u", "-b", "1048576"]);
    let credentials = options(&job.pki.server);
    server.arg(format!(
        "OPENSSL-LISTEN:{port},bind=127.0.0.1,{credentials}"
    ));
    server.arg(format!("OPEN:{}", job.stage.target.display()));
    let server = group.serve(server, port)?;

    let mut client = job.tools.command("socat");
    client.args(["-u", "-b", "1048576"]);
    client.arg(format!("OPEN:{},rdonly", job.stage.source.display()));
    let credentials = options(&job.pki.client);
    client.arg(format!(
        "OPENSSL:127.0.0.1:{port},commonname=localhost,{credentials}"
    ));
    let client = group.start(client)?;
    group.wait(client)?;
    group.wait(server)
}

/// `tar | socat` to `socat | tar`.
fn run_tar(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    let server = pipeline(
        job,
        "socat -u -b 1048576 \"$1\" STDOUT | tar -C \"$2\" --xattrs --xattrs-include='*' --acls -xpf -",
    );
    let client = pipeline(
        job,
        "tar -C \"$2\" --one-file-system --xattrs --acls -Scf - . | socat -u -b 1048576 STDIN \"$1\"",
    );
    run_pipelines(job, group, server, client, None)
}

/// A shell's pipeline. It is given socat's address as `$1`, the directory as `$2`, and what a peer
/// has of its own as `$3`.
pub(super) fn pipeline(job: &Job<'_>, script: &str) -> Command {
    let mut shell = job.tools.command("sh");
    shell.args(["-c", script, "sh"]);
    shell
}

/// Runs a pipeline at each end of a connection.
pub(super) fn run_pipelines(
    job: &Job<'_>,
    group: &mut Group,
    mut server: Command,
    mut client: Command,
    own: Option<&OsStr>,
) -> Result<(), Error> {
    let port = port::free()?;
    let credentials = options(&job.pki.server);
    server.arg(format!(
        "OPENSSL-LISTEN:{port},bind=127.0.0.1,{credentials}"
    ));
    server.arg(&job.stage.target).args(own);
    let server = group.serve(server, port)?;
    let credentials = options(&job.pki.client);
    client.arg(format!(
        "OPENSSL:127.0.0.1:{port},commonname=localhost,{credentials}"
    ));
    client.arg(&job.stage.source).args(own);
    let client = group.start(client)?;
    group.wait(client)?;
    group.wait(server)
}

fn options(credentials: &Credentials) -> String {
    format!(
        "cert={},key={},cafile={},verify=1",
        credentials.certificate.display(),
        credentials.key.display(),
        credentials.authority.display()
    )
}
