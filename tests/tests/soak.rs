//! Clones that go through whatever a seed brings: broken networks, killed and paused agents, at any
//! moment, started again until there is a receipt. Then the target holds what the source does, and
//! nothing was sent again that was durable. One round in three is of a tree, which may change while
//! both agents are dead.
//!
//! `VOLFERRY_SOAK_ROUNDS` says how many rounds, `VOLFERRY_SOAK_SEED` which one comes first (one of
//! the clock's when it is not set). Each round's seed is printed, and brings back its volume, its
//! options and the order of its faults; when they strike depends on the machine too.
//! `cargo xtask soak` sets both.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;
use volferry_tests::agents::Agent;
use volferry_tests::http::progress_if_there;
use volferry_tests::nbd::{Filter, Storage};
use volferry_tests::programs::{Ended, volferry};
use volferry_tests::proxy::{Ending, Fault, Way};
use volferry_tests::random::Random;
use volferry_tests::trial::{Trial, number};
use volferry_tests::{MIB, tree, volume};
use volferry_transport::Role;

/// Rounds unless told otherwise.
const ROUNDS: u64 = 4;

/// How long a round may take after its last fault.
const ROUND_PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn soak() {
    let number_of = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let rounds: u64 = number_of("VOLFERRY_SOAK_ROUNDS").unwrap_or(ROUNDS);
    let first: u64 = number_of("VOLFERRY_SOAK_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_secs() % 1_000_000 * 1000
    });
    for seed in first..first + rounds {
        let since = Instant::now();
        let mut story = String::new();
        let outcome = catch_unwind(AssertUnwindSafe(|| Round::new(seed).run(&mut story)));
        let seconds = since.elapsed().as_secs_f64();
        say(&format!("soak: seed {seed}: {seconds:.1} s: {story}"));
        if let Err(panic) = outcome {
            say(&format!(
                "soak: seed {seed} failed (VOLFERRY_SOAK_SEED={seed})"
            ));
            resume_unwind(panic);
        }
    }
}

/// Also where the test harness keeps what a test that passes prints.
fn say(line: &str) {
    let _unseen = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strike {
    Cut,
    Reset,
    Silence,
    Corrupt,
    Duplicate,
    Handshake,
    KillSource,
    KillTarget,
    KillBoth,
    EndSource,
    EndTarget,
    PauseSource,
    PauseTarget,
    TakeOver,
}

const STRIKES: [Strike; 15] = [
    Strike::Cut,
    Strike::Reset,
    Strike::Silence,
    Strike::Corrupt,
    Strike::Duplicate,
    Strike::Handshake,
    Strike::Handshake,
    Strike::KillSource,
    Strike::KillTarget,
    Strike::KillBoth,
    Strike::EndSource,
    Strike::EndTarget,
    Strike::PauseSource,
    Strike::PauseTarget,
    Strike::TakeOver,
];

/// A clone and what it goes through.
struct Round {
    trial: Trial,
    random: Random,
    /// Bytes in blocks that hold data.
    data_bytes: u64,
    streams: u64,
    source_arguments: Vec<String>,
    target_arguments: Vec<String>,
    /// `None` when it is to be started.
    source: Option<Agent>,
    target: Option<Agent>,
    /// Bytes of data that are known to be durable.
    durable_bytes: u64,
    /// Whether a tree is cloned, and how it changes.
    tree: Option<Tree>,
    /// Where the target is killed together with its storage, which then loses what was not flushed.
    storage: Option<Storage>,
    /// Whether a byte of a handshake was turned over: who then can't prove itself is refused for
    /// good, and started again by whoever wants the clone.
    is_refused: bool,
}

/// Bytes of a connection in which either end shakes hands, and a little more.
const HANDSHAKE_LEN: u64 = 3000;

/// How an agent that ended well did so.
enum Done {
    Source,
    Target,
}

impl Round {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        if random.once_in(3) {
            return Self::of_tree(random, seed);
        }
        let size = random.within(16 * MIB..48 * MIB) / 512 * 512;
        let mut trial = Trial::of(size);
        let data_bytes = if random.once_in(2) {
            volume::create_dense(&trial.source_volume, size, seed);
            size
        } else {
            volume::create(&trial.source_volume, size, seed).data_bytes
        };
        let words = |text: String| text.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        let streams = random.within(1..5);
        let source_arguments = words(format!(
            "--streams {streams} --readers {} --memory-mib {} --chunk-size {}{}",
            random.within(1..4),
            random.pick(&[16, 64]),
            random.pick(&["64KiB", "256KiB", "1MiB"]),
            random.pick(&["", " --buffered"]),
        ));
        let resume = if random.once_in(3) {
            "--resume digest".to_owned()
        } else {
            format!("--state-dir {}", trial.state)
        };
        let mut target = format!(
            "{resume} --verify {} --writers {} --memory-mib {}{}",
            random.pick(&["digest", "digest", "readback"]),
            random.within(1..4),
            random.pick(&[16, 64]),
            random.pick(&["", "", " --buffered"]),
        );
        let mut storage = None;
        if random.once_in(3) {
            storage = Storage::dirty(size, Filter::VolatileCache);
        }
        if let Some(storage) = &storage {
            trial.target_volume.clone_from(&storage.file);
            target += " --overwrite";
        } else if random.once_in(3) {
            volume::create_dirty(&trial.target_volume, random.within(MIB..size + MIB));
            target += " --overwrite";
        }
        // Some seconds, so that the faults strike in the middle.
        trial
            .proxy
            .throttle(Way::ToTarget, Some(data_bytes / random.within(3..8)));
        if random.once_in(4) {
            let delay = Duration::from_millis(random.within(1..20));
            trial.proxy.delay(Way::ToSource, delay);
        }
        Self {
            trial,
            random,
            data_bytes,
            streams,
            source_arguments,
            target_arguments: words(target),
            source: None,
            target: None,
            durable_bytes: 0,
            tree: None,
            storage,
            is_refused: false,
        }
    }

    /// A round with a tree.
    fn of_tree(mut random: Random, seed: u64) -> Self {
        let trial = Trial::of(0);
        let tree = Tree::plant(&trial.source_volume, &mut random, seed);
        fs::create_dir(&trial.target_volume).unwrap();
        let words = |text: String| text.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        let streams = random.within(1..5);
        let source_arguments = words(format!(
            "--streams {streams} --readers {} --memory-mib {}{}",
            random.within(1..4),
            random.pick(&[16, 64]),
            random.pick(&["", " --buffered"]),
        ));
        let target_arguments = words(format!(
            "--writers {} --memory-mib {} --resume {}{}",
            random.within(1..4),
            random.pick(&[16, 64]),
            random.pick(&["journal", "journal", "digest"]),
            random.pick(&["", " --buffered"]),
        ));
        // What is finished becomes durable every five seconds.
        let bytes_per_second = tree.bytes / random.within(8..16);
        trial
            .proxy
            .throttle(Way::ToTarget, Some(bytes_per_second.max(MIB)));
        Self {
            trial,
            random,
            data_bytes: tree.bytes,
            streams,
            source_arguments,
            target_arguments,
            source: None,
            target: None,
            durable_bytes: 0,
            tree: Some(tree),
            storage: None,
            is_refused: false,
        }
    }

    fn run(mut self, story: &mut String) {
        let storage = if self.storage.is_some() {
            ", volatile storage"
        } else {
            ""
        };
        *story = format!(
            "{}{} KiB, {} of data{storage}, {:?} {:?}:",
            if self.tree.is_some() { "tree, " } else { "" },
            self.trial.size >> 10,
            self.data_bytes >> 10,
            self.source_arguments.join(" "),
            self.target_arguments.join(" ")
        );
        let strikes = self.random.within(1..6);
        let mut passed = 0;
        let mut done = None;
        for _ in 0..strikes {
            let milliseconds = match self.tree {
                Some(_) => self.random.within(0..9000),
                None => self.random.within(0..2500),
            };
            done = self.work(milliseconds);
            if done.is_some() {
                break;
            }
            self.look();
            let strike = self.random.pick(&STRIKES);
            *story += &format!(" {strike:?}@{}", self.durable_bytes >> 10);
            self.strike(strike);
            passed = self.trial.proxy.passed(Way::ToTarget);
        }
        let durable_bytes = self.durable_bytes;
        self.trial.proxy.throttle(Way::ToTarget, None);
        let patience = u64::try_from(ROUND_PATIENCE.as_millis()).unwrap();
        let done = done.or_else(|| self.work(patience));
        let role = match done.unwrap_or_else(|| panic!("no receipt in time")) {
            Done::Source => Role::Source,
            Done::Target => Role::Target,
        };
        let again = self.trial.proxy.passed(Way::ToTarget) - passed;
        let receipt = self.trial.agents.receipt(role);
        *story += &format!(
            " done: {} sessions, {} KiB resumed, {} resent, {} matched",
            receipt["sessions"],
            number(&receipt, "resumed_bytes") >> 10,
            number(&receipt, "resent_bytes") >> 10,
            number(&receipt, "matched_bytes") >> 10,
        );
        self.check(&receipt);
        // Since the last strike no more came than was not durable before it: TLS and frames cost
        // some, and so do handshakes and offers.
        if self.tree.as_ref().is_some_and(|tree| tree.has_changed) {
            return;
        }
        let needed = self.data_bytes.saturating_sub(durable_bytes);
        let bound = needed + needed / 32 + (2 + self.streams) * MIB;
        assert!(
            again <= bound,
            "{again} bytes came where {needed} were needed: {receipt}"
        );
    }

    fn check(&mut self, receipt: &Value) {
        let trial = &self.trial;
        if self.tree.is_some() {
            tree::assert_same(&trial.source_volume, &trial.target_volume);
            let digest = volferry(["digest", trial.target_volume.to_str().unwrap(), "--json"]);
            assert_eq!(digest.succeeded().json()["digest"], receipt["digest"]);
            return;
        }
        volume::assert_same(&trial.source_volume, &trial.target_volume, trial.size);
        if let Some(mut storage) = self.storage.take() {
            storage.kill();
            volume::assert_same(&trial.source_volume, &storage.backing, trial.size);
        }
        assert_eq!(number(receipt, "data_bytes"), self.data_bytes, "{receipt}");
        assert_eq!(number(receipt, "repaired_bytes"), 0, "{receipt}");
        let volume = trial.source_volume.to_str().unwrap();
        let chunk_size = receipt["chunk_size"].to_string();
        let digest = volferry(["digest", volume, "--json", "--chunk-size", &chunk_size]);
        assert_eq!(digest.succeeded().json()["digest"], receipt["digest"]);
    }

    /// Keeps both agents running for a while, or until one has a receipt; the other then has a
    /// moment to end too.
    fn work(&mut self, milliseconds: u64) -> Option<Done> {
        let end_at = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < end_at {
            self.start_missing();
            for (role, done) in [(Role::Target, Done::Target), (Role::Source, Done::Source)] {
                let agent = match role {
                    Role::Target => &mut self.target,
                    _ => &mut self.source,
                };
                if agent.as_mut().is_some_and(|agent| !agent.is_running()) {
                    let ended = agent.take().unwrap().end();
                    if !self.was_refused(&ended) {
                        let _receipt = ended.succeeded();
                        return Some(done);
                    }
                }
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Whether an agent ended because a handshake was damaged.
    fn was_refused(&self, ended: &Ended) -> bool {
        self.is_refused && [5, 6].contains(&ended.code())
    }

    fn start_missing(&mut self) {
        let trial = &self.trial;
        if self.target.is_none() {
            let arguments = self.target_arguments.iter().map(String::as_str);
            let arguments: Vec<&str> = arguments.collect();
            self.target = Some(trial.start_target(&arguments));
        }
        if self.source.is_none() {
            self.source = Some(self.start_source(&[]));
        }
    }

    fn start_source(&self, more: &[&str]) -> Agent {
        let own = self.source_arguments.iter().map(String::as_str);
        let arguments: Vec<&str> = own.chain(more.iter().copied()).collect();
        let address = self.trial.proxy.address();
        self.trial
            .agents
            .start_source(address, &self.trial.source_volume, &arguments)
    }

    /// Notes what is durable by now.
    fn look(&mut self) {
        let Some(target) = &mut self.target else {
            return;
        };
        let Some(report) = progress_if_there(target.admin()) else {
            return;
        };
        let durable = match self.tree {
            Some(_) => &report["durable_bytes"],
            None => &report["checkpoint"]["data_bytes"],
        };
        if let Some(bytes) = durable.as_u64() {
            self.durable_bytes = self.durable_bytes.max(bytes);
        }
    }

    fn strike(&mut self, strike: Strike) {
        let proxy = &self.trial.proxy;
        let milliseconds = Duration::from_millis;
        match strike {
            Strike::Cut => proxy.end_all(Ending::Cut),
            Strike::Reset => proxy.end_all(Ending::Reset),
            Strike::Silence => {
                proxy.fall_silent();
                thread::sleep(milliseconds(self.random.within(100..2000)));
                proxy.heal();
            }
            Strike::Corrupt | Strike::Duplicate => {
                let fault = match strike {
                    Strike::Corrupt => Fault::Corrupt,
                    _ => Fault::Duplicate,
                };
                // Behind the handshake: who can't prove itself is refused for good.
                let connection = proxy.connections().saturating_sub(1);
                let so_far = proxy.carried(connection, Way::ToTarget).max(8192);
                let at = so_far + self.random.within(0..MIB);
                proxy.plan(Some(connection), Way::ToTarget, at, fault);
                let before = proxy.happened();
                let end_at = Instant::now() + milliseconds(1000);
                while proxy.happened() == before && Instant::now() < end_at {
                    thread::sleep(milliseconds(10));
                }
                proxy.forget_plans();
            }
            Strike::Handshake => {
                let way = self.random.pick(&[Way::ToTarget, Way::ToSource]);
                let fault = self.random.pick(&[
                    Fault::End(Ending::Cut),
                    Fault::End(Ending::Reset),
                    Fault::Silence,
                    Fault::Corrupt,
                ]);
                // The control connection that comes next, or one for data.
                let connection = proxy.connections() + self.random.within(0..1 + self.streams);
                let at = self.random.within(0..HANDSHAKE_LEN);
                let before = proxy.happened();
                proxy.plan(Some(connection), way, at, fault);
                self.is_refused |= fault == Fault::Corrupt;
                proxy.end_all(Ending::Reset);
                let end_at = Instant::now() + milliseconds(2000);
                while proxy.happened() == before && Instant::now() < end_at {
                    thread::sleep(milliseconds(10));
                }
                if fault == Fault::Silence {
                    thread::sleep(milliseconds(self.random.within(100..2000)));
                }
                proxy.forget_plans();
                proxy.heal();
            }
            Strike::KillSource => self.kill(true, false),
            Strike::KillTarget => self.kill(false, true),
            Strike::KillBoth => {
                self.kill(true, true);
                if let Some(tree) = &mut self.tree
                    && self.random.once_in(2)
                {
                    tree.change(&self.trial.source_volume, &mut self.random);
                }
            }
            Strike::EndSource => {
                let source = self.source.take();
                self.end(source);
            }
            Strike::EndTarget => {
                let target = self.target.take();
                self.end(target);
            }
            Strike::PauseSource => self.pause(Role::Source),
            Strike::PauseTarget => self.pause(Role::Target),
            Strike::TakeOver => {
                let second = self.start_source(&["--take-over"]);
                let mut first = self.source.replace(second).unwrap();
                let end_at = Instant::now() + milliseconds(2000);
                while first.is_running() && Instant::now() < end_at {
                    thread::sleep(milliseconds(10));
                }
                // One that had no session yet is not shut out, and waits for its turn.
                let may_wait = first.is_running();
                if may_wait {
                    first.signal(Signal::KILL);
                }
                let ended = first.end();
                let is_well =
                    may_wait || [0, 5].contains(&ended.code()) || self.was_refused(&ended);
                assert!(is_well, "{}", ended.stderr);
            }
        }
        thread::sleep(milliseconds(self.random.within(0..500)));
    }

    /// Asks an agent to end, which it may just have done.
    fn end(&self, agent: Option<Agent>) {
        if let Some(agent) = agent {
            agent.signal(Signal::TERM);
            let ended = agent.end();
            // One that had just been started dies of the signal.
            let is_well = [0, 8, -1].contains(&ended.code()) || self.was_refused(&ended);
            assert!(is_well, "{}", ended.stderr);
        }
    }

    fn kill(&mut self, source: bool, target: bool) {
        let victims = [
            self.source.take_if(|_| source),
            self.target.take_if(|_| target),
        ];
        // Nobody can tell anybody that the storage is gone, and nothing is flushed at the end.
        for victim in victims.iter().flatten() {
            victim.signal(Signal::STOP);
        }
        let mut storage = self.storage.as_mut().filter(|_| target);
        if let Some(storage) = &mut storage {
            storage.kill();
        }
        for victim in victims.iter().flatten() {
            victim.signal(Signal::KILL);
        }
        for victim in victims.into_iter().flatten() {
            let _gone: Ended = victim.end();
        }
        if let Some(storage) = storage {
            storage.serve().unwrap();
        }
    }

    fn pause(&mut self, role: Role) {
        let time = Duration::from_millis(self.random.within(100..2000));
        let agent = match role {
            Role::Source => &self.source,
            _ => &self.target,
        };
        if let Some(agent) = agent {
            agent.signal(Signal::STOP);
            thread::sleep(time);
            agent.signal(Signal::CONT);
        }
    }
}

/// A tree of files, some in many directories, some large.
struct Tree {
    files: Vec<PathBuf>,
    /// Of all of them.
    bytes: u64,
    has_changed: bool,
}

impl Tree {
    fn plant(root: &Path, random: &mut Random, seed: u64) -> Self {
        let mut files = Vec::new();
        let mut bytes = 0;
        for number in 0..random.within(50..500) {
            let file = PathBuf::from(format!("{}/{}/{number}", number % 7, number % 3));
            let path = root.join(&file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut content = vec![0; usize::try_from(random.within(0..40_000)).unwrap()];
            random.fill(&mut content);
            bytes += content.len() as u64;
            fs::write(path, content).unwrap();
            files.push(file);
        }
        for number in 0..random.within(1..4) {
            let size = random.within(MIB / 4..16 * MIB) / 512 * 512;
            let file = PathBuf::from(format!("large{number}"));
            volume::create_dense(&root.join(&file), size, seed + number);
            bytes += size;
            files.push(file);
        }
        Self {
            files,
            bytes,
            has_changed: false,
        }
    }

    /// Changes, removes and adds some files, and makes others of another kind.
    fn change(&mut self, root: &Path, random: &mut Random) {
        self.has_changed = true;
        for number in 0..random.within(1..10) {
            let file = random.within(0..self.files.len() as u64);
            let path = root.join(&self.files[usize::try_from(file).unwrap()]);
            // What was removed before is not there.
            match random.within(0..5) {
                0 => drop(fs::remove_file(&path)),
                1 => drop(fs::write(&path, "another content")),
                2 if fs::remove_file(&path).is_ok() => fs::create_dir(&path).unwrap(),
                3 if path.is_file() => {
                    let file = File::options().write(true).open(&path).unwrap();
                    file.set_len(random.within(0..2 * MIB)).unwrap();
                }
                _ => fs::write(root.join(format!("new{number}")), "new").unwrap(),
            }
        }
    }
}
