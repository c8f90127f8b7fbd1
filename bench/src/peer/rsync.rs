//! rsync to its own daemon through a pair of stunnels, the usual way to give rsync TLS.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Job, Peer, never};
use crate::error::{At as _, Error};
use crate::pki::Credentials;
use crate::port;
use crate::process::Group;

/// Whole files, since the delta algorithm saves nothing on a fresh target.
pub(crate) const PEER: Peer = Peer {
    name: "rsync",
    programs: &["rsync", "stunnel"],
    version_flag: "-version",
    how: "rsync --whole-file --inplace to a daemon behind stunnel, --sparse for files; -aHAXSx for \
          directories",
    refusal: never,
    run,
};

fn run(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    let daemon = port::free()?;
    group.serve(daemon_command(job, daemon)?, daemon)?;
    let inner = tunnel(job, group, &job.pki.server, daemon, false)?;
    let outer = tunnel(job, group, &job.pki.client, inner, true)?;
    let client = group.start(client_command(job, outer))?;
    group.wait(client)
}

fn daemon_command(job: &Job<'_>, port: u16) -> Result<Command, Error> {
    let directory = job.stage.target.parent().unwrap_or_else(|| Path::new("/"));
    let pid_file = job.scratch.join("rsyncd.pid");
    // A daemon refuses to write devices unless it is told not to refuse.
    let text = format!(
        "address = 127.0.0.1\nport = {port}\nuse chroot = no\nmunge symlinks = no\nuid = root\ngid = root\n\
         pid file = {}\n[target]\npath = {}\nread only = no\n\
         refuse options = !write-devices\n",
        pid_file.display(),
        directory.display()
    );
    let configuration = job.scratch.join("rsyncd.conf");
    fs::write(&configuration, text).at("write", &configuration)?;
    let mut daemon = job.tools.command("rsync");
    daemon.args(["--daemon", "--no-detach"]);
    daemon.arg(format!("--config={}", configuration.display()));
    Ok(daemon)
}

/// Starts a stunnel in front of `next`; the port that it listens on.
fn tunnel(
    job: &Job<'_>,
    group: &mut Group,
    credentials: &Credentials,
    next: u16,
    is_client: bool,
) -> Result<u16, Error> {
    let port = port::free()?;
    let client = if is_client {
        "yes\ncheckHost = localhost"
    } else {
        "no\nrequireCert = yes"
    };
    let text = format!(
        "foreground = yes\npid =\ndebug = 4\n[tunnel]\naccept = 127.0.0.1:{port}\n\
         connect = 127.0.0.1:{next}\ncert = {}\nkey = {}\nCAfile = {}\nverifyChain = yes\n\
         sslVersionMin = TLSv1.3\nclient = {client}\n",
        credentials.certificate.display(),
        credentials.key.display(),
        credentials.authority.display()
    );
    let configuration = job.scratch.join(format!("stunnel-{port}.conf"));
    fs::write(&configuration, text).at("write", &configuration)?;
    let mut stunnel = job.tools.command("stunnel");
    stunnel.arg(&configuration);
    group.serve(stunnel, port)?;
    Ok(port)
}

fn client_command(job: &Job<'_>, port: u16) -> Command {
    let mut client = job.tools.command("rsync");
    if job.stage.tree.is_some() {
        client.args(["-aHAXSx", "--whole-file", "--numeric-ids"]);
        client.arg(format!("{}/", job.stage.source.display()));
        let name = job.stage.target.file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        client.arg(format!("rsync://127.0.0.1:{port}/target/{name}/"));
        return client;
    }
    client.args([
        "--whole-file",
        "--inplace",
        "--no-compress",
        "--ignore-times",
    ]);
    if job.stage.is_device() {
        client.args(["--copy-devices", "--write-devices"]);
    } else {
        client.arg("--sparse");
    }
    let name = job
        .stage
        .target
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    client.arg(&job.stage.source);
    client.arg(format!("rsync://127.0.0.1:{port}/target/{name}"));
    client
}
