//! The way of KubeVirt's CDI for a directory: a sparse tar, snappy, one stream over TLS, and a tar
//! that unpacks without owners, extended attributes and ACLs. Its own programs only run in a cluster;
//! this has the same steps with socat's TLS in place of Go's, and without the HTTP around it.

use super::socat::{self, pipeline};
use super::{Job, Peer};
use crate::error::Error;
use crate::process::Group;
use crate::row::Stage;

/// What is not kept shows as not identical.
pub(crate) const PEER: Peer = Peer {
    name: "cdi",
    programs: &["socat", "bench-snappy"],
    version_flag: "-V",
    how: "tar -S, snappy, one stream over TLS, tar --no-same-owner, as CDI clones a directory",
    refusal,
    run,
};

fn refusal(stage: &Stage) -> Option<&'static str> {
    stage
        .tree
        .is_none()
        .then_some("only its way with directories is measured")
}

fn run(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    let snappy = job.tools.command("bench-snappy");
    let snappy = snappy.get_program();
    let server = pipeline(
        job,
        "socat -u -b 1048576 \"$1\" STDOUT | \"$3\" unpack | \
         tar -C \"$2\" --preserve-permissions --no-same-owner -xf -",
    );
    let client = pipeline(
        job,
        "tar -C \"$2\" --one-file-system -Scf - . | \"$3\" pack | socat -u -b 1048576 STDIN \"$1\"",
    );
    socat::run_pipelines(job, group, server, client, Some(snappy))
}
