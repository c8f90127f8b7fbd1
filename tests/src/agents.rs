//! A source and a target agent, each a process of its own, with identities of one clone.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use volferry_transport::Role;

use crate::device::Namespaces;
use crate::gate::Gate;
use crate::identity::Identity;
use crate::programs::{self, Ended, Running};
use crate::{MIB, temporary_directory, volume};

/// What the two agents of one clone share.
#[derive(Debug)]
pub struct Agents {
    /// The clone's identities.
    pub identity: Identity,
    directory: TempDir,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            identity: Identity::default(),
            directory: temporary_directory(),
        }
    }
}

impl Agents {
    /// A file in the clone's own temporary directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the agent at `role`'s end leaves its receipt.
    #[must_use]
    pub fn receipt_path(&self, role: Role) -> PathBuf {
        self.path(&format!("{role}-receipt.json"))
    }

    /// What the agent at `role`'s end left there.
    #[must_use]
    pub fn receipt(&self, role: Role) -> Value {
        let text = std::fs::read_to_string(self.receipt_path(role)).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Starts a target agent on loopback, and waits until it listens.
    #[must_use]
    pub fn start_target(&self, volume: &Path, arguments: &[&str]) -> Agent {
        self.start_target_as(&self.identity.good(Role::Target), volume, arguments)
    }

    /// The same with other credentials.
    #[must_use]
    pub fn start_target_as(&self, identity: &Path, volume: &Path, arguments: &[&str]) -> Agent {
        let mut target = self.launch_target(identity, volume, arguments);
        target.wait_until_it_listens();
        target
    }

    /// The same at the right end of two namespaces.
    #[must_use]
    pub fn start_target_within(&self, ends: &Namespaces, volume: &Path, args: &[&str]) -> Agent {
        let identity = self.identity.good(Role::Target);
        let command = programs::command_in_namespace(&ends.right, programs::TARGET);
        let mut target = self.launch(Role::Target, &identity, command, |command| {
            let listen = format!("{}:0", Namespaces::RIGHT_ADDRESS);
            command.args(["--listen", &listen]).args(args);
            command.arg("--volume").arg(volume);
        });
        target.wait_until_it_listens();
        target
    }

    /// Starts a target agent that listens at a Unix socket, and waits until it does.
    #[must_use]
    pub fn start_target_at(&self, socket: &Path, volume: &Path, arguments: &[&str]) -> Agent {
        let identity = self.identity.good(Role::Target);
        let command = programs::command(programs::TARGET);
        let mut target = self.launch(Role::Target, &identity, command, |command| {
            command.arg("--listen").arg(unix(socket)).args(arguments);
            command.arg("--volume").arg(volume);
        });
        target.wait_for("listening for the source agent");
        target
    }

    /// Starts a source agent that dials a Unix socket.
    #[must_use]
    pub fn start_source_at(&self, socket: &Path, volume: &Path, arguments: &[&str]) -> Agent {
        let identity = self.identity.good(Role::Source);
        let command = programs::command(programs::SOURCE);
        self.launch(Role::Source, &identity, command, |command| {
            command.arg("--target").arg(unix(socket));
            command.arg("--volume").arg(volume).args(arguments);
        })
    }

    /// Starts a source agent at the left end of two namespaces.
    #[must_use]
    pub fn start_source_within(
        &self,
        ends: &Namespaces,
        address: SocketAddr,
        volume: &Path,
        args: &[&str],
    ) -> Agent {
        let identity = self.identity.good(Role::Source);
        let command = programs::command_in_namespace(&ends.left, programs::SOURCE);
        self.launch(Role::Source, &identity, command, |command| {
            command.arg("--target").arg(address.to_string());
            command.arg("--volume").arg(volume).args(args);
        })
    }

    /// Runs a target agent that ends before it listens.
    #[must_use]
    pub fn run_target(&self, volume: &Path, arguments: &[&str]) -> Ended {
        let identity = self.identity.good(Role::Target);
        self.launch_target(&identity, volume, arguments).end()
    }

    fn launch_target(&self, identity: &Path, volume: &Path, arguments: &[&str]) -> Agent {
        let command = programs::command(programs::TARGET);
        self.launch(Role::Target, identity, command, |command| {
            command.args(["--listen", "127.0.0.1:0"]).args(arguments);
            command.arg("--volume").arg(volume);
        })
    }

    /// Starts a source agent that dials `address`.
    #[must_use]
    pub fn start_source(&self, address: SocketAddr, volume: &Path, arguments: &[&str]) -> Agent {
        let identity = self.identity.good(Role::Source);
        self.start_source_as(&identity, address, volume, arguments)
    }

    /// The same with other credentials.
    #[must_use]
    pub fn start_source_as(
        &self,
        identity: &Path,
        address: SocketAddr,
        volume: &Path,
        arguments: &[&str],
    ) -> Agent {
        let command = programs::command(programs::SOURCE);
        self.launch(Role::Source, identity, command, |command| {
            command.arg("--target").arg(address.to_string());
            command.arg("--volume").arg(volume).args(arguments);
        })
    }

    /// Starts the agent of `role` by `command`, which `configure` completes: from here come only
    /// the credentials, the place of the receipt, and a free admin port.
    #[must_use]
    pub fn launch(
        &self,
        role: Role,
        identity: &Path,
        mut command: Command,
        configure: impl FnOnce(&mut Command),
    ) -> Agent {
        command.arg("--identity").arg(identity);
        command.arg("--receipt").arg(self.receipt_path(role));
        command.args(["--admin-listen", "127.0.0.1:0"]);
        configure(&mut command);
        Agent::started(Running::start(&mut command))
    }
}

/// An agent that runs.
#[derive(Debug)]
pub struct Agent {
    running: Running,
    /// Where a target listens.
    address: Option<SocketAddr>,
}

impl Agent {
    /// An agent that was just started.
    #[must_use]
    pub const fn started(running: Running) -> Self {
        Self {
            running,
            address: None,
        }
    }

    /// Waits until a target listens for its source.
    pub fn wait_until_it_listens(&mut self) {
        self.address = Some(self.logged_address("listening for the source agent"));
    }

    /// Where it listens for the source agent.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// Where its admin port is.
    #[must_use]
    pub fn admin(&mut self) -> SocketAddr {
        self.logged_address("serving the admin port")
    }

    fn logged_address(&mut self, words: &str) -> SocketAddr {
        let line = self.running.wait_for(words);
        let (_, address) = line.split_once("address=").unwrap();
        address.trim().parse().unwrap()
    }

    /// Waits for its end.
    #[must_use]
    pub fn end(self) -> Ended {
        self.running.end()
    }
}

impl Deref for Agent {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.running
    }
}

/// A clone of a file to a file that is held in the middle by a gate.
#[derive(Debug)]
pub struct HeldClone {
    /// Its agents' identities and files.
    pub agents: Agents,
    /// The source agent.
    pub source: Agent,
    /// The target agent.
    pub target: Agent,
    /// What holds it.
    pub gate: Gate,
    /// The source volume.
    pub source_volume: PathBuf,
    /// The target volume.
    pub target_volume: PathBuf,
}

impl HeldClone {
    /// Bytes of the volume: all data, and more than both agents and the sockets between them hold.
    pub const SIZE: u64 = 64 * MIB;

    /// Bytes that pass the gate before it closes.
    pub const PASSED: u64 = 4 * MIB;

    /// Starts a clone and waits until it is held.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more flags for both agents.
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Self {
        let agents = Agents::default();
        let (source_volume, target_volume) = (agents.path("source"), agents.path("target"));
        volume::create_dense(&source_volume, Self::SIZE, 7);
        let small = [&["--memory-mib", "16"], arguments].concat();
        let target = agents.start_target(&target_volume, &small);
        let gate = Gate::closing_after(Self::PASSED, target.address());
        // One reader and one connection: the volume is read in order, and little is under way.
        let in_order = [&small, &["--readers", "1", "--streams", "1"][..]].concat();
        let source = agents.start_source(gate.address(), &source_volume, &in_order);
        gate.wait_until_it_holds();
        Self {
            agents,
            source,
            target,
            gate,
            source_volume,
            target_volume,
        }
    }

    /// Lets the clone go on, and expects that it ends well.
    #[track_caller]
    pub fn goes_on_to_a_good_end(self) {
        self.gate.open();
        let _source = self.source.end().succeeded();
        let _target = self.target.end().succeeded();
        volume::assert_same(&self.source_volume, &self.target_volume, Self::SIZE);
    }
}

/// How the agents are told of a Unix socket.
fn unix(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}
