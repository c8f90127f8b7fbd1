//! The command line: what it prints, what it proves, and how it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use volferry_tests::agents::Agents;
use volferry_tests::programs::{self, Ended, run, volferry};
use volferry_tests::volume::{self, Content};
use volferry_tests::{MIB, temporary_directory};

/// A finished clone and its papers.
struct Proven {
    directory: TempDir,
    content: Content,
    receipt: Value,
}

impl Proven {
    fn new() -> Self {
        let directory = temporary_directory();
        let path = |name: &str| directory.path().join(name).into_os_string();
        let size = 9 * MIB + 4097;
        let content = volume::create(&directory.path().join("source"), size, 1);
        let mut arguments = vec!["copy".into(), path("source"), path("target")];
        arguments.extend(["--json".into(), "--receipt".into(), path("receipt")]);
        arguments.extend(["--manifest".into(), path("manifest")]);
        let receipt = volferry(arguments).succeeded().json();
        Self {
            directory,
            content,
            receipt,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn verify(&self, arguments: &[&str]) -> Ended {
        let mut command = programs::command(programs::CLI);
        command.arg("verify").arg(self.path("target"));
        command.arg("--receipt").arg(self.path("receipt"));
        for argument in arguments {
            match argument.strip_prefix('@') {
                Some(name) => command.arg(self.path(name)),
                None => command.arg(argument),
            };
        }
        run(&mut command)
    }
}

#[test]
fn a_copy_prints_one_json_object_and_the_receipt_file_holds_the_same() {
    let proven = Proven::new();
    let stored = fs::read_to_string(proven.path("receipt")).unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored, proven.receipt);
    assert_eq!(stored["receipt_version"], 1);
    assert_eq!(stored["verified"], "digest");
    assert_eq!(stored["chunk_size"], MIB);
    assert_eq!(stored["logical_bytes"], proven.content.size);
    assert_eq!(stored["resumed_bytes"], 0);
}

#[test]
fn a_copy_tells_people_its_digest() {
    let directory = temporary_directory();
    let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
    volume::create(&source, MIB, 1);
    let ended = volferry([&"copy".into(), &source, &target]).succeeded();
    let digest = volferry([&"digest".into(), &source]).succeeded().stdout;
    let digest = digest.split(' ').next().unwrap();
    assert!(ended.stdout.contains(digest), "{}", ended.stdout);
    assert!(ended.stdout.contains("1.0 MiB"), "{}", ended.stdout);
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_failed_copy_prints_nothing_but_leaves_its_failure() {
    let directory = temporary_directory();
    let receipt = directory.path().join("receipt");
    let mut command = programs::command(programs::CLI);
    command.args(["copy", "/no/such/source"]);
    command.arg(directory.path().join("target"));
    command.args(["--json", "--receipt"]).arg(&receipt);
    let ended = run(&mut command).failed(3, &["/no/such/source"]);
    assert_eq!(ended.stdout, "");
    let failure: Value = serde_json::from_str(&fs::read_to_string(receipt).unwrap()).unwrap();
    assert_eq!(failure["failure"]["class"], "source");
    assert_eq!(failure["failure"]["exit_code"], 3);
}

#[test]
fn the_digest_of_source_and_target_is_the_receipts() {
    let proven = Proven::new();
    for name in ["source", "target"] {
        let volume = proven.path(name);
        let printed = volferry([&"digest".into(), &volume, &"--json".into()]).succeeded();
        let printed = printed.json();
        assert_eq!(printed["digest"], proven.receipt["digest"], "{name}");
        assert_eq!(printed["logical_bytes"], proven.content.size);
        let buffered = volferry([&"digest".into(), &volume, &"--buffered".into()]).succeeded();
        let digest = proven.receipt["digest"].as_str().unwrap();
        assert_eq!(buffered.stdout, format!("{digest}  {}\n", volume.display()));
    }
    volume::flip(&proven.path("source"), 5 * MIB);
    let printed = volferry([&"digest".into(), &proven.path("source"), &"--json".into()]);
    assert_ne!(
        printed.succeeded().json()["digest"],
        proven.receipt["digest"]
    );
}

#[test]
fn verify_passes_on_the_clone() {
    let proven = Proven::new();
    for arguments in [&[][..], &["--manifest", "@manifest"], &["--buffered"]] {
        let ended = proven.verify(arguments).succeeded();
        let digest = proven.receipt["digest"].as_str().unwrap();
        assert!(ended.stdout.contains(digest), "{}", ended.stdout);
    }
}

#[test]
fn verify_notices_one_flipped_byte_and_names_its_chunk() {
    let proven = Proven::new();
    // The first, one in the middle, the last byte of the odd end.
    for (chunk, offset) in [(0, 0), (4, 4 * MIB + 12345), (9, proven.content.size - 1)] {
        volume::flip(&proven.path("target"), offset);
        proven.verify(&[]).failed(7, &["--manifest"]);
        let bytes = format!(
            "(bytes {}..{})",
            chunk * MIB,
            ((chunk + 1) * MIB).min(proven.content.size)
        );
        let ended = proven.verify(&["--manifest", "@manifest"]);
        let range = format!("chunks {chunk}..{}", chunk + 1);
        ended.failed(7, &["chunks that differ: 1", &range, &bytes]);
        volume::flip(&proven.path("target"), offset);
    }
    let _whole_again = proven.verify(&[]).succeeded();
}

#[test]
fn verify_does_not_take_a_shorter_volume() {
    let proven = Proven::new();
    let target = fs::OpenOptions::new()
        .write(true)
        .open(proven.path("target"))
        .unwrap();
    target.set_len(proven.content.size - 1).unwrap();
    let ended = proven.verify(&[]);
    assert_ne!(ended.code(), 0, "{}", ended.stdout);
}

#[test]
fn verify_looks_only_at_the_volume_on_a_larger_target() {
    let proven = Proven::new();
    let target = fs::OpenOptions::new()
        .write(true)
        .open(proven.path("target"))
        .unwrap();
    target.set_len(proven.content.size + MIB).unwrap();
    let _passes = proven.verify(&["--manifest", "@manifest"]).succeeded();
}

#[test]
fn verify_does_not_believe_papers_that_do_not_fit() {
    let (proven, other) = (Proven::new(), temporary_directory());
    let [volume, manifest] = ["volume", "manifest"].map(|name| other.path().join(name));
    volume::create(&volume, proven.content.size, 99);
    let mut command = programs::command(programs::CLI);
    command.arg("digest").arg(&volume);
    let _made = run(command.arg("--manifest").arg(&manifest)).succeeded();
    let ended = proven.verify(&["--manifest", manifest.to_str().unwrap()]);
    ended.failed(2, &["is not of the receipt's clone"]);

    fs::write(proven.path("receipt"), "{}").unwrap();
    proven.verify(&[]).failed(2, &["receipt can't be read"]);
}

/// `digest --manifest` and `copy --manifest` write the same.
#[test]
fn a_manifest_can_be_made_later() {
    let proven = Proven::new();
    let later = proven.path("later");
    let mut command = programs::command(programs::CLI);
    command.arg("digest").arg(proven.path("target"));
    let _made = run(command.arg("--manifest").arg(&later)).succeeded();
    let sorted = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let mut lines: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(later), sorted(proven.path("manifest")));
}

#[test]
fn the_demo_works_and_cleans_up() {
    let directory = temporary_directory();
    let mut command = programs::command(programs::CLI);
    let ended = run(command.arg("demo").env("TMPDIR", directory.path())).succeeded();
    assert!(ended.stdout.contains("this clone is proven"));
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_identity_is_private_and_never_overwritten() {
    let directory = temporary_directory();
    let out = directory.path().join("identity");
    let new = || {
        let mut command = programs::command(programs::CLI);
        command.args(["identity", "new", "--out"]).arg(&out);
        run(&mut command)
    };
    let said = new().succeeded().stdout;
    for role in ["source", "target", "observer"] {
        let directory = out.join(role);
        assert!(said.contains(directory.to_str().unwrap()), "{said}");
        let mode = fs::metadata(directory.join("tls.key"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
    let key = fs::read(out.join("source/tls.key")).unwrap();
    new().failed(2, &["is not empty"]);
    assert_eq!(fs::read(out.join("source/tls.key")).unwrap(), key);
}

/// The table of the manual, one real failure for each line. 1, a fault of volferry itself, can't
/// be brought about from outside.
#[test]
fn every_exit_code_means_what_the_manual_says() {
    let agents = Agents::default();
    let volume = agents.path("volume");
    volume::create(&volume, MIB, 1);
    let copy = |source: &str, target: &str| {
        let path = |name| agents.path(name).into_os_string();
        volferry(["copy".into(), path(source), path(target)]).code()
    };
    assert_eq!(copy("volume", "target"), 0);
    assert_eq!(copy("volume", "volume"), 2);
    assert_eq!(copy("missing", "new"), 3);
    assert_eq!(copy("volume", "target"), 4);

    // No other test listens at that address.
    let nobody = std::net::TcpListener::bind("127.0.0.77:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let source = agents.start_source(address, &volume, &["--connect-timeout", "0"]);
    source.end().failed(5, &["cannot connect to"]);

    let mut command = programs::command(programs::TARGET);
    command.args(["--listen", "127.0.0.1:0", "--identity", "/no/such/identity"]);
    let ended = run(command.arg("--volume").arg(agents.path("new")));
    ended.failed(6, &["cannot use our own credentials", "/no/such/identity"]);

    let proven = Proven::new();
    volume::flip(&proven.path("target"), 0);
    assert_eq!(proven.verify(&[]).code(), 7);

    let target = agents.start_target(&agents.path("new"), &[]);
    target.signal(Signal::TERM);
    assert_eq!(target.end().code(), 8);
}
