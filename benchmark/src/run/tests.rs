use std::path::Path;

use uuid::Uuid;
use volferry_protocol::digest::Digest;
use volferry_protocol::geometry::ChunkSize;
use volferry_protocol::receipt::{AgentStats, Receipt, Verified};

use super::*;
use crate::settings::Tuning;

/// Agents that are small.
pub(crate) fn tuning() -> Tuning {
    Tuning {
        chunk_size: ChunkSize::DEFAULT,
        streams: 2,
        readers: 2,
        tree_readers: 2,
        writers: 2,
        memory_bytes: 16 << 20,
        direct: false,
        quic: false,
    }
}

/// A benchmark of next to nothing.
pub(crate) fn settings(source: &Path, target: &Path) -> Settings {
    Settings {
        source: source.to_owned(),
        target: target.to_owned(),
        scratch: None,
        overwrite: false,
        profiles: vec![Profile::Sparse(0.5), Profile::Random],
        size: Some(8 << 20),
        files: Some(20),
        seed: 1,
        repeats: 1,
        budget: Duration::from_secs(600),
        budget_bytes: 1 << 40,
        drop_caches: false,
        tuning: tuning(),
    }
}

/// Copies files, or fails when it should.
struct Copier {
    fails: bool,
}

impl Cloner for Copier {
    fn clone(
        &self,
        source: &Path,
        target: &Path,
        on_sample: &mut dyn FnMut(Sample),
    ) -> Result<Receipt, Failure> {
        let failed = |text: String| Failure::new(FailureCode::TargetWrite, text);
        if self.fails && source.ends_with("random.img") {
            return Err(failed("no more".into()));
        }
        assert!(!target.exists(), "each clone has a target of its own");
        if source.is_dir() {
            fs::create_dir(target).unwrap();
        } else {
            fs::copy(source, target).unwrap();
        }
        on_sample(Sample::default());
        Ok(receipt())
    }
}

pub(crate) fn receipt() -> Receipt {
    Receipt {
        receipt_version: Receipt::VERSION,
        clone_id: Uuid::nil(),
        digest: Digest([1; 32]),
        chunk_size: ChunkSize::DEFAULT,
        verified: Verified::Digest,
        logical_bytes: 1,
        data_bytes: 1,
        zero_bytes: 0,
        wire_bytes: 1,
        resumed_bytes: 0,
        sent_bytes: 1,
        resent_bytes: 0,
        matched_bytes: 0,
        repaired_bytes: 0,
        sessions: 1,
        seconds: 1.0,
        bytes_per_second: 1.0,
        finished_unix_seconds: 0,
        source: AgentStats::default(),
        target: AgentStats::default(),
        limit: None,
        tree: None,
    }
}

/// What is in a directory.
fn names(directory: &Path) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn everything_is_measured_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, vec![7; 3 << 20]).unwrap();
    let target = dir.path().join("target");
    let mut steps = 0;
    let settings = settings(&source, &target);
    let report = run(
        &settings,
        &Copier { fails: false },
        &Stop::default(),
        |_step| steps += 1,
    );
    let report = report.unwrap();
    for ceiling in &report.ceilings {
        assert_eq!(ceiling.repeats.len(), 1, "{:?}", ceiling.kind);
        let measured = &ceiling.repeats[0];
        assert!(measured.cost.seconds > 0.0, "{ceiling:?}");
        assert_eq!(
            measured.bytes > 0,
            ceiling.kind != Kind::Session,
            "{ceiling:?}"
        );
    }
    // Reading and writing at once was measured with both volumes.
    assert_eq!(report.ceilings.len(), Kind::ALL.len() + 1);
    let of_both = |ceiling: &&Ceiling| ceiling.kind == Kind::ReadWrite;
    let both: Vec<_> = report.ceilings.iter().filter(of_both).collect();
    let volumes = [0, 1].map(|at| both[at].volume.as_deref());
    assert_eq!(volumes, [Some("random"), Some("sparse=0.5")]);
    assert!(both[0].repeats[0].bytes > both[1].repeats[0].bytes);
    let of_write = report.ceiling(Kind::TargetWrite).unwrap();
    assert!(of_write.repeats[0].latencies.contains_key("flush"));
    let cloned: Vec<_> = report
        .clones
        .iter()
        .map(|clone| clone.name.as_str())
        .collect();
    assert_eq!(
        cloned,
        ["random", "sparse=0.5", "files", "source"],
        "the densest first"
    );
    for clone in &report.clones {
        assert!(clone.prediction.is_some(), "{}", clone.name);
        assert_eq!((clone.repeats.len(), clone.trace.len()), (1, 1));
    }
    assert!(steps > Kind::ALL.len());
    assert!(report.budget.spent_bytes > 8 << 20);
    assert_eq!(names(dir.path()), ["source"], "what was made is gone");
    assert_eq!(Report::read(&report.to_json().unwrap()), Ok(report));
}

#[test]
fn a_budget_cuts_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &dir.path().join("target"));
    settings.repeats = 1000;
    settings.budget_bytes = 30 << 20;
    settings.budget = Duration::from_secs(8);
    let report = run(
        &settings,
        &Copier { fails: false },
        &Stop::default(),
        |_step| {},
    )
    .unwrap();
    assert!(
        report.budget.spent_bytes <= settings.budget_bytes,
        "{:?}",
        report.budget
    );
    let random = &report.clones[0];
    assert!(random.repeats.len() < 4, "8 MiB each");
    let cut = report
        .ceilings
        .iter()
        .filter_map(|ceiling| ceiling.skipped.as_deref());
    let cut = cut.chain(
        report
            .clones
            .iter()
            .filter_map(|clone| clone.skipped.as_deref()),
    );
    assert!(cut.into_iter().any(|reason| reason.contains("budget")));
    assert_eq!(names(dir.path()).len(), 0);
}

#[test]
fn a_failed_or_cancelled_benchmark_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    let settings = settings(&target, &target);
    let failed = run(
        &settings,
        &Copier { fails: true },
        &Stop::default(),
        |_step| {},
    );
    assert_eq!(failed.unwrap_err().text, "no more");
    assert_eq!(names(&target).len(), 0);

    let stop = Stop::default();
    let ended = run(&settings, &Copier { fails: false }, &stop, |step| {
        if step.contains("writing the target") {
            assert_ne!(names(&target).len(), 0);
            stop.request();
        }
    });
    assert_eq!(ended.unwrap_err().code, FailureCode::Cancelled);
    assert_eq!(names(&target).len(), 0);
}

#[test]
fn a_noisy_machine_is_told() {
    let mut report = crate::report::tests::example();
    assert_eq!(noise(&report).others_share, 0.0);
    assert!(
        warnings(&report)
            .iter()
            .any(|text| text.contains("random lie"))
    );
    for ceiling in &mut report.ceilings {
        for repeat in &mut ceiling.repeats {
            repeat.cost.machine_busy_seconds += 0.5;
            repeat.cost.machine_stolen_seconds += 0.1;
        }
    }
    report.noise = noise(&report);
    assert!(
        (report.noise.others_share - 0.25).abs() < 1e-9,
        "{:?}",
        report.noise
    );
    let warnings = warnings(&report);
    assert!(
        warnings
            .iter()
            .any(|text| text.contains("others used 25 %")),
        "{warnings:?}"
    );
    assert!(
        warnings
            .iter()
            .any(|text| text.contains("hypervisor took 5 %")),
        "{warnings:?}"
    );
}
