use std::path::Path;

use uuid::Uuid;
use volferry_protocol::digest::Digest;
use volferry_protocol::geometry::ChunkSize;
use volferry_protocol::receipt::{AgentStats, Receipt, Verified};

use super::*;
use crate::cost::Cost;
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
            fs::copy(source, target).map_err(|error| failed(error.to_string()))?;
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

/// Gives `work` what is about to run.
fn with_runner<T>(settings: &Settings, work: impl FnOnce(&mut Runner<'_>) -> T) -> T {
    let place = Place::claim(settings).unwrap();
    let mut runner = Runner {
        settings,
        cloner: &Copier { fails: false },
        stop: &Stop::default(),
        place: &place,
        begun: Instant::now(),
        removing: Duration::ZERO,
        report: &mut begin(settings),
        on_step: &mut |_step| {},
    };
    work(&mut runner)
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
    // Reading and writing at once was measured with both volumes and the user's own.
    assert_eq!(report.ceilings.len(), Kind::ALL.len() + 2);
    let of_both = |ceiling: &&Ceiling| ceiling.kind == Kind::ReadWrite;
    let both: Vec<_> = report.ceilings.iter().filter(of_both).collect();
    let volumes = [0, 1, 2].map(|at| both[at].volume.as_deref());
    assert_eq!(
        volumes,
        [Some("random"), Some("sparse=0.5"), Some("source")]
    );
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
fn a_volume_that_takes_too_long_is_predicted_and_not_cloned() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, vec![7; 32 << 20]).unwrap();
    let mut settings = settings(&source, &dir.path().join("target"));
    settings.profiles = vec![Profile::Random];
    settings.size = Some(4 << 20);
    settings.files = Some(0);
    settings.budget_bytes = 31 << 20;
    let copier = Copier { fails: false };
    let report = run(&settings, &copier, &Stop::default(), |_step| {}).unwrap();
    let own = report.clones.last().unwrap();
    assert_eq!((own.name.as_str(), own.repeats.len()), ("source", 0));
    assert!(own.skipped.is_some());
    let of_own = |one: &&Ceiling| one.volume.as_deref() == Some("source");
    let beginning = report.ceilings.iter().find(of_own).unwrap();
    assert_eq!(beginning.skipped, None);
    assert_eq!(beginning.repeats[0].bytes, 4 << 20);
    let predicted = own.prediction.as_ref().unwrap();
    let eight_times = beginning.seconds().unwrap().median * 8.0;
    assert!(predicted.seconds >= eight_times, "{predicted:?}");
}

#[test]
fn a_source_that_can_not_be_read_any_more_costs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let mut settings = settings(&source, &dir.path().join("target"));
    settings.profiles = vec![Profile::Random];
    settings.size = Some(4 << 20);
    settings.files = Some(0);
    settings.repeats = 2;
    let copier = Copier { fails: false };
    // Gone before the first round, and before the second.
    for (moment, repeats) in [("warming up", 0), ("round 2: reading the source", 1)] {
        fs::write(&source, vec![7; 3 << 20]).unwrap();
        let report = run(&settings, &copier, &Stop::default(), |step| {
            if step == moment {
                fs::remove_file(&source).unwrap();
            }
        });
        let report = report.unwrap();
        let is_own =
            |one: &Ceiling| one.kind == Kind::SourceRead || one.volume.as_deref() == Some("source");
        let (own, others): (Vec<_>, Vec<_>) = report.ceilings.iter().partition(|one| is_own(one));
        assert_eq!(own.len(), 2);
        for one in own {
            assert_eq!(one.repeats.len(), repeats, "{moment}: {one:?}");
            assert_eq!(one.skipped.is_some(), repeats == 0, "{one:?}");
        }
        let measured = others.iter().filter(|one| one.skipped.is_none());
        assert!(measured.clone().count() > 10);
        assert!(measured.into_iter().all(|one| one.repeats.len() == 2));
        let [random, cloned] = &report.clones[..] else {
            panic!("{:?}", report.clones);
        };
        assert_eq!((random.repeats.len(), cloned.repeats.len()), (2, repeats));
        assert_eq!(cloned.skipped.is_some(), repeats == 0);
        let again = report
            .warnings
            .iter()
            .filter(|text| text.contains("not again"));
        assert_eq!(again.count(), 3 * repeats, "{:?}", report.warnings);
    }
}

/// Puts a measurement into each ceiling of this kind.
fn put(report: &mut Report, kind: Kind, seconds: f64, bytes: u64, names: u64) {
    let of_kind = report.ceilings.iter_mut().filter(|one| one.kind == kind);
    for ceiling in of_kind {
        let cost = Cost {
            seconds,
            cpu_seconds: seconds / 1000.0,
            ..Cost::default()
        };
        ceiling.repeats.push(Measured {
            cost,
            bytes,
            names,
            ..Measured::default()
        });
    }
}

#[test]
fn what_there_was_no_time_for_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, vec![7; 3 << 20]).unwrap();
    let settings = settings(&source, &dir.path().join("target"));
    with_runner(&settings, |runner| {
        let shapes = runner.make().unwrap();
        let mut steps = runner.plan(&shapes);
        // A byte in an hour.
        put(runner.report, Kind::TargetWrite, 3600.0, 1, 0);
        let late = steps.iter_mut().filter(|step| step.bytes > 0);
        let late: Vec<_> = late.collect();
        assert!(late.len() > 5);
        for step in late {
            assert!(!runner.is_due(step, 0));
            assert!(!runner.is_due(step, 1), "as if it took no time");
        }
        let ceilings = runner.report.ceilings.iter();
        let late = ceilings.filter(|one| one.volume.is_some());
        assert!(late.into_iter().all(|one| one.skipped.is_some()));
    });
}

#[test]
fn the_first_clone_is_guessed_from_all_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, tree) = (dir.path().join("volume"), dir.path().join("tree"));
    fs::write(&volume, vec![7; 3 << 20]).unwrap();
    fs::create_dir(&tree).unwrap();
    for number in 0..50 {
        fs::write(tree.join(number.to_string()), "x").unwrap();
    }
    for source in [volume, tree] {
        let settings = settings(&source, &dir.path().join("target"));
        with_runner(&settings, |runner| {
            let shapes = runner.make().unwrap();
            let mut steps = runner.plan(&shapes);
            let own = steps.last_mut().unwrap();
            assert_eq!(runner.over(own, 0), None);
            // Bytes are written in no time, and a name takes a minute, or a MiB that is read, too.
            put(runner.report, Kind::TargetWrite, 1.0, 1 << 40, 0);
            put(runner.report, Kind::TreeReadWrite, 6000.0, 1, 100);
            put(runner.report, Kind::ReadWrite, 600.0, 1 << 20, 0);
            for kind in [Kind::Session, Kind::Hash, Kind::NetworkPaced, Kind::TlsN] {
                put(runner.report, kind, 0.001, 1 << 30, 0);
            }
            let reason = runner.over(own, 0).unwrap();
            assert!(reason.contains("budget of 600 s"), "{reason}");
        });
    }
}

#[test]
fn clones_of_a_tree_of_the_users_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), vec![7; 5000]).unwrap();
    let settings = settings(&source, &target);
    with_runner(&settings, |runner| {
        let shapes = runner.make().unwrap();
        let steps = runner.plan(&shapes);
        let own = runner.report.clones.len() - 1;
        let before = names(runner.place.scratch());
        for round in 0..3 {
            runner.clone_shape(&shapes, own, round).unwrap();
            assert_eq!(names(runner.place.scratch()), before);
        }
        assert_eq!(runner.report.clones[own].repeats.len(), 3);
        // What doesn't fit is not begun.
        let mut step = steps.into_iter().next_back().unwrap();
        assert_eq!(runner.over(&step, 0), None);
        step.bytes = 1 << 60;
        runner.report.budget.bytes = u64::MAX;
        let reason = runner.over(&step, 0).unwrap();
        assert!(reason.contains("are free"), "{reason}");
    });
}

#[test]
fn nothing_is_made_for_a_source_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir.path().join("none"), &dir.path().join("target"));
    let copier = Copier { fails: false };
    let failed = run(&settings, &copier, &Stop::default(), |step| {
        assert!(!step.contains("making"), "{step}");
    });
    assert_eq!(failed.unwrap_err().code, FailureCode::SourceOpen);
    assert_eq!(names(dir.path()).len(), 0);
}

#[test]
fn a_source_that_is_not_cloned_is_told_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for directory in ["full", "empty"] {
        fs::create_dir(path(directory)).unwrap();
    }
    fs::write(path("full/file"), "x").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let look_at = |source: &str, scratch: Option<&str>| {
        let mut settings = settings(&path(source), &path("target"));
        settings.scratch = scratch.map(path);
        with_runner(&settings, |runner| {
            let shapes = runner.make().unwrap();
            runner.plan(&shapes);
            let read = runner.report.ceilings[0].clone();
            assert_eq!(read.kind, Kind::SourceRead);
            (shapes.source, read.skipped, runner.report.warnings.clone())
        })
    };
    for (source, scratch, reason, volume) in [
        ("full", Some("full"), "made in it", "is a directory"),
        ("empty", None, "it is empty", "is a directory"),
        ("socket", None, "neither", "neither"),
    ] {
        let (found, read, warnings) = look_at(source, scratch);
        assert!(found.unwrap_err().contains(reason));
        assert!(read.unwrap().contains(volume), "{source}");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("is not cloned: ") && warnings[0].contains(reason));
    }
    let (found, _read, warnings) = look_at("full", None);
    assert_eq!(
        (found.unwrap().name.as_str(), warnings.len()),
        ("source", 0)
    );
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

#[test]
fn removing_takes_its_time_however_fast_a_tree_was_made() {
    let check = |making, seconds| {
        assert_eq!(
            removing(5000, Duration::from_secs(making)).as_secs(),
            seconds
        );
    };
    check(0, 1);
    check(2, 1);
    check(10, 5);
}
