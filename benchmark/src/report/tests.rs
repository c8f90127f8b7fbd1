use super::*;

const GIB: u64 = 1 << 30;

/// A report of a machine on which everything is done at 1 GiB/s, for half a processor.
pub(crate) fn example() -> Report {
    let measured = |kind| {
        let (seconds, cpu_seconds, bytes) = match kind {
            Kind::Session => (0.1, 0.05, 0),
            Kind::Hash => (1.0, 2.0, 4 * GIB),
            _ => (1.0, 0.5, GIB),
        };
        Measured {
            cost: Cost {
                seconds,
                cpu_seconds,
                machine_busy_seconds: cpu_seconds,
                machine_stolen_seconds: 0.0,
            },
            bytes,
            ..Measured::default()
        }
    };
    let ceilings = Kind::ALL.iter().map(|kind| Ceiling {
        volume: (*kind == Kind::ReadWrite).then(|| "random".to_owned()),
        repeats: vec![measured(*kind); 3],
        ..Ceiling::new(*kind, 2)
    });
    let run = |seconds| CloneRun {
        cost: Cost {
            seconds,
            cpu_seconds: 4.0,
            machine_busy_seconds: 4.5,
            machine_stolen_seconds: 0.0,
        },
        source_cpu_seconds: 2.0,
        target_cpu_seconds: 2.0,
        digest: Digest([7; 32]),
        limit: None,
        object_seconds: None,
    };
    Report {
        schema: SCHEMA.into(),
        schema_version: SCHEMA_VERSION,
        date: "2026-11-21T20:00:00Z".into(),
        volferry: "0.1.0".into(),
        machine: Machine {
            cpu_model: "a <processor> & more".into(),
            cpus: 2,
            memory_bytes: 8 * GIB,
            kernel: "6.1".into(),
            system: "Linux".into(),
            load_before: 0.0,
        },
        limits: Limits::default(),
        source: Volume::default(),
        target: Volume::default(),
        scratch: Volume::default(),
        seed: 1,
        size_bytes: GIB,
        files: 100,
        tuning: crate::run::tests::tuning(),
        drops_caches: false,
        budget: Budget::default(),
        ceilings: ceilings.collect(),
        clones: vec![CloneResult {
            name: "random".into(),
            facts: Facts {
                logical_bytes: GIB,
                read_bytes: GIB,
                data_bytes: GIB,
                names: 0,
            },
            skipped: None,
            repeats: vec![run(2.0), run(2.5), run(3.0)],
            prediction: None,
            trace: vec![Sample::default()],
        }],
        pods: None,
        noise: Noise::default(),
        warnings: vec!["something <was> up".into()],
    }
}

#[test]
fn a_report_is_read_as_it_was_written() {
    let report = example();
    let text = report.to_json().unwrap();
    assert_eq!(Report::read(&text), Ok(report));
}

#[test]
fn what_is_no_report_of_this_version_is_refused() {
    let text = example().to_json().unwrap();
    let later = text.replacen("\"schema_version\": 1", "\"schema_version\": 2", 1);
    assert!(Report::read(&later).unwrap_err().contains("version 2"));
    for bad in ["", "{}", "{\"schema\":\"other\",\"schema_version\":1}"] {
        assert!(Report::read(bad).is_err(), "{bad}");
    }
}

#[test]
fn places_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let kind = |path: &Path| Volume::look_at(path).kind;
    assert_eq!(kind(dir.path()), "directory");
    assert_eq!(kind(&dir.path().join("new")), "new");
    fs::write(dir.path().join("file"), "x").unwrap();
    assert_eq!(kind(&dir.path().join("file")), "file");
}
