//! The peers: ways to clone a volume over TLS on the loopback interface.
//!
//! A peer is a line in [`PEERS`]: the programs it needs, what it is run with, and a function that
//! starts its processes and returns when the clone is complete. A peer whose programs are missing,
//! or that can't clone such a volume, is skipped by name and with the reason.

mod cdi;
mod nbdcopy;
mod qemu_img;
mod rsync;
mod socat;
mod volferry;

use std::path::Path;

use crate::error::Error;
use crate::pki::Pki;
use crate::process::Group;
use crate::row::Stage;
use crate::tools::Tools;

/// One way to clone a volume.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its name in the report and on the command line.
    pub name: &'static str,
    /// Programs without which it is skipped.
    pub programs: &'static [&'static str],
    /// The flag that makes a program tell its version.
    pub version_flag: &'static str,
    /// How it is run, in a sentence for the report.
    pub how: &'static str,
    /// Why it can't clone this volume; `None` when it can.
    pub refusal: fn(&Stage) -> Option<&'static str>,
    /// Clones the volume; returns when the target is complete, if not yet flushed.
    pub run: fn(&Job<'_>, &mut Group) -> Result<(), Error>,
}

/// What a peer is given for one clone.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The volume and its target.
    pub stage: &'a Stage,
    /// Credentials for both ends.
    pub pki: &'a Pki,
    /// An empty directory for configuration files.
    pub scratch: &'a Path,
    /// Where programs are.
    pub tools: &'a Tools,
}

/// All peers, in the order of the report.
pub(crate) const PEERS: [Peer; 7] = [
    volferry::ONE_PROCESS,
    volferry::TWO_PROCESSES,
    nbdcopy::PEER,
    qemu_img::PEER,
    rsync::PEER,
    socat::PEER,
    cdi::PEER,
];

impl Peer {
    /// The versions of its programs.
    pub(crate) fn version(&self, tools: &Tools) -> String {
        let version = |program: &&str| tools.version(program, self.version_flag);
        self.programs
            .iter()
            .map(version)
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// Whether a contender of this name is the product itself.
pub(crate) fn is_volferry(name: &str) -> bool {
    name.starts_with("volferry")
}

/// For peers that clone bytes of a volume.
fn no_tree(stage: &Stage) -> Option<&'static str> {
    stage.tree.is_some().then_some("it clones no directories")
}

/// For peers that clone whatever there is.
const fn never(_: &Stage) -> Option<&'static str> {
    None
}
