//! A clone that goes through trials: a volume, a network that fails on purpose, and two agents that
//! may be killed and started again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use volferry_transport::Role;

use crate::agents::{Agent, Agents};
use crate::http::{eventually, progress};
use crate::programs::volferry;
use crate::proxy::Proxy;
use crate::{MIB, volume};

/// What a source always gets: small chunks, read and sent in order, and as few under way as may be.
pub const IN_ORDER: [&str; 8] = [
    "--memory-mib",
    "16",
    "--readers",
    "1",
    "--streams",
    "1",
    "--chunk-size",
    "256KiB",
];

/// Bytes of a chunk of [`IN_ORDER`].
pub const CHUNK: u64 = 256 << 10;

/// The clone.
#[derive(Debug)]
pub struct Trial {
    /// Its agents' identities and files.
    pub agents: Agents,
    /// What stands between them.
    pub proxy: Proxy,
    /// The source volume.
    pub source_volume: PathBuf,
    /// The target volume.
    pub target_volume: PathBuf,
    /// Where the target keeps its journal, if it is told to.
    pub state: String,
    /// Bytes of the volume.
    pub size: u64,
}

impl Default for Trial {
    /// A clone of a file without a zero block to a file that is not there yet.
    fn default() -> Self {
        let trial = Self::of(Self::SIZE);
        volume::create_dense(&trial.source_volume, trial.size, 7);
        trial
    }
}

impl Trial {
    /// Bytes of the volume: more than is held in the middle and the sockets take.
    pub const SIZE: u64 = 32 * MIB;

    /// Bytes of chunks that pass before a clone is held in the middle.
    pub const PASSED: u64 = 8 * MIB;

    /// A clone of a volume of `size` bytes that is still to be made.
    #[must_use]
    pub fn of(size: u64) -> Self {
        let agents = Agents::default();
        Self {
            source_volume: agents.path("source"),
            target_volume: agents.path("target"),
            state: agents.path("state").to_str().unwrap().to_owned(),
            agents,
            proxy: Proxy::default(),
            size,
        }
    }

    /// Starts a target, to which the network leads from now on.
    #[must_use]
    pub fn start_target(&self, arguments: &[&str]) -> Agent {
        let target = self.agents.start_target(&self.target_volume, arguments);
        self.proxy.lead_to(target.address());
        target
    }

    /// The same with a journal.
    #[must_use]
    pub fn start_target_with_journal(&self, arguments: &[&str]) -> Agent {
        self.start_target(&[&["--state-dir", &self.state], arguments].concat())
    }

    /// Starts a source behind the network, which works [`IN_ORDER`].
    #[must_use]
    pub fn start_source(&self, arguments: &[&str]) -> Agent {
        let arguments = [&IN_ORDER[..], arguments].concat();
        self.agents
            .start_source(self.proxy.address(), &self.source_volume, &arguments)
    }

    /// Starts both, and holds the clone in the middle, with all that came through durable.
    #[must_use]
    pub fn hold(&self, target: Agent, source: Agent) -> Held {
        self.proxy.wait_until_it_holds();
        let mut held = Held {
            source,
            target,
            sent_bytes: 0,
            durable_bytes: 0,
        };
        let (source, target) = (held.source.admin(), held.target.admin());
        eventually("that all is durable", || {
            let report = progress(target);
            let durable_bytes = number(&report, "durable_bytes");
            durable_bytes + 2 * CHUNK >= Self::PASSED
                && durable_bytes == number(&report, "data_bytes")
        });
        held.durable_bytes = number(&progress(target), "durable_bytes");
        held.sent_bytes = settled(source, "data_bytes");
        held
    }

    /// Starts a target and a source, and holds them in the middle. The volume has to be without
    /// zeros.
    #[must_use]
    pub fn start_and_hold(&self, target_arguments: &[&str], source_arguments: &[&str]) -> Held {
        let target = self.start_target(target_arguments);
        self.proxy.hold_chunks_after(Self::PASSED);
        let source = self.start_source(source_arguments);
        self.hold(target, source)
    }

    /// Expects that both end well, that the target holds what the source does, and that the receipt
    /// says so at both ends. Gives the receipt.
    #[track_caller]
    #[must_use]
    pub fn ends_well(&self, source: Agent, target: Agent) -> Value {
        let _proven = source.end().succeeded();
        let _proven = target.end().succeeded();
        self.assert_right()
    }

    /// Expects that the target holds what the source does, and that the receipt says so.
    #[track_caller]
    #[must_use]
    pub fn assert_right(&self) -> Value {
        volume::assert_same(&self.source_volume, &self.target_volume, self.size);
        let receipt = self.agents.receipt(Role::Source);
        assert_eq!(receipt, self.agents.receipt(Role::Target));
        assert_eq!(number(&receipt, "logical_bytes"), self.size);
        let chunk_size = receipt["chunk_size"].to_string();
        let volume = self.source_volume.to_str().unwrap();
        let digest = volferry(["digest", volume, "--json", "--chunk-size", &chunk_size]);
        assert_eq!(digest.succeeded().json()["digest"], receipt["digest"]);
        receipt
    }
}

/// A clone that is held in the middle.
#[derive(Debug)]
pub struct Held {
    /// The source agent.
    pub source: Agent,
    /// The target agent.
    pub target: Agent,
    /// Bytes that the source has sent by now; some are still on their way.
    pub sent_bytes: u64,
    /// Bytes that are durable at the target by now.
    pub durable_bytes: u64,
}

impl Held {
    /// Bytes that were sent and are not durable.
    #[must_use]
    pub const fn unsafe_bytes(&self) -> u64 {
        self.sent_bytes - self.durable_bytes
    }
}

/// Expects that of a volume without zeros nothing was sent again that was durable when the clone
/// was held, and that each byte that was sent is accounted for.
#[track_caller]
pub fn assert_resumed(receipt: &Value, durable_bytes: u64, unsafe_bytes: u64) {
    let read = |name| number(receipt, name);
    let (data, sent, resent) = (read("data_bytes"), read("sent_bytes"), read("resent_bytes"));
    assert!(read("resumed_bytes") >= durable_bytes, "{receipt}");
    assert_eq!(sent - data, resent, "{receipt}");
    // What the source hands to the sockets between a fault and its notice counts as sent: on a slow
    // machine as much as they hold, at both sides of the proxy.
    assert!(
        resent <= unsafe_bytes + 12 * MIB,
        "{unsafe_bytes}: {receipt}"
    );
    assert!(read("sessions") >= 2, "{receipt}");
}

/// A number of a report or receipt.
#[track_caller]
#[must_use]
pub fn number(report: &Value, name: &str) -> u64 {
    let number = report[name].as_u64();
    number.unwrap_or_else(|| panic!("{name} is no number in {report}"))
}

/// A number of an agent's progress, once it stands still.
#[must_use]
pub fn settled(admin: SocketAddr, name: &str) -> u64 {
    let look = || number(&progress(admin), name);
    let mut before = look();
    loop {
        thread::sleep(Duration::from_millis(400));
        let now = look();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Waits until a number of an agent's progress is at least `least`.
#[track_caller]
pub fn wait_until_at_least(admin: SocketAddr, name: &str, least: u64) {
    let what = format!("{name} of {least}");
    eventually(&what, || number(&progress(admin), name) >= least);
}
