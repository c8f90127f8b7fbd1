use std::fs;
use std::net::TcpListener;
use std::path::Path;

use uuid::Uuid;

use super::*;
use crate::run::tests::{receipt, tuning};

fn settings(volume: &Path, peer: Option<Peer>) -> EndSettings {
    EndSettings {
        volume: volume.to_owned(),
        profile: Profile::Vm,
        seed: 7,
        files: 30,
        repeats: 1,
        bytes: 4 << 20,
        tuning: tuning(),
        peer,
    }
}

#[test]
fn two_ends_meet_and_become_one_report() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (identities, from, to) = (path("identities"), path("from"), path("to"));
    let minted = volferry_transport::mint(Uuid::new_v4(), Duration::from_secs(3600)).unwrap();
    minted.write_to(&identities).unwrap();
    // Free a moment ago, at an address where no other test listens: it could be given that port.
    let port = TcpListener::bind("127.0.0.77:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    drop(port);
    let peer = |role: Role| {
        Some(Peer {
            identity: identities.join(role.as_str()),
            address: address.clone(),
        })
    };
    let target_settings = settings(&to, peer(Role::Target));
    let target = std::thread::spawn(move || {
        let mut first = None;
        let stop = Stop::default();
        let measured = measure_target(&target_settings, &stop, &mut |_step| {}, &mut |report| {
            first = Some(report.clone());
        });
        (measured, first, target_settings.volume)
    });
    let source = measure_source(
        &settings(&from, peer(Role::Source)),
        &Stop::default(),
        &mut |_step| {},
    );
    let source = source.unwrap();
    let (target, first, to) = target.join().unwrap();
    let (target, first) = (target.unwrap(), first.unwrap());
    assert!(!first.is_complete && target.is_complete);
    assert!(
        first
            .ceilings
            .iter()
            .all(|ceiling| ceiling.kind != Kind::TlsN)
    );
    assert!(crate::place::is_empty(&to).unwrap(), "for the clone");
    assert_eq!(source.facts.names, 32);
    for end in [&target, &source] {
        for ceiling in &end.ceilings {
            assert_eq!(ceiling.skipped, None, "{:?} at {:?}", ceiling.kind, end.end);
            assert!(ceiling.repeats[0].bytes > 0, "{:?}", ceiling.kind);
        }
    }
    let text = serde_json::to_string(&source).unwrap();
    assert!(!text.contains('\n') && text.starts_with(r#"{"schema":"volferry-bench-end""#));

    let mut receipt = receipt();
    receipt.seconds = 2.0;
    let shaped = |source: &EndReport, clones: &[PodClone]| Shaped {
        source: source.clone(),
        clones: clones.to_vec(),
    };
    let inputs = |shapes: Vec<Shaped>| Inputs {
        shapes,
        target: target.clone(),
        from_class: "a".into(),
        to_class: "b".into(),
        source_node: "one".into(),
        target_node: "two".into(),
        budget: Budget::default(),
        warnings: vec!["a class keeps its volumes".into()],
    };
    let clone = PodClone {
        receipt,
        object_seconds: 5.0,
    };
    // What was filled once more met nobody.
    let mut further = source.clone();
    further.ceilings.truncate(6);
    assert!(further.ceilings.iter().all(|it| it.kind != Kind::TlsN));
    further.facts.names *= 2;
    let clones = [clone];
    let shapes = vec![shaped(&source, &clones), shaped(&further, &clones)];
    let report = join(inputs(shapes)).unwrap();
    assert_eq!(report.clones.len(), 2);
    let [first, second] = [0, 1].map(|at| report.clones[at].prediction.as_ref().unwrap());
    assert!(second.cpu_seconds > first.cpu_seconds);
    let mut bounds = second.bounds.iter();
    assert!(bounds.any(|bound| bound.name == "network"), "{second:?}");
    assert_eq!(report.clones[0].seconds().unwrap().median, 2.0);
    assert_eq!(report.clones[0].repeats[0].object_seconds, Some(5.0));
    let prediction = report.clones[0].prediction.as_ref().unwrap();
    assert!(
        prediction
            .bounds
            .iter()
            .any(|bound| bound.name == "tree write")
    );
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("keeps its volumes"))
    );
    let pods = report.pods.as_ref().unwrap();
    assert_eq!((&*pods.mode, &*pods.target.node), ("filesystem", "two"));
    assert_eq!(
        Report::read(&report.to_json().unwrap()).as_ref(),
        Ok(&report)
    );
    assert!(crate::table::render(&report).contains("node two"));

    // Nothing to predict from, and nothing to predict.
    let mut blind = source;
    blind.ceilings.retain(|ceiling| ceiling.kind != Kind::Hash);
    let report = join(inputs(vec![shaped(&blind, &[])])).unwrap();
    assert_eq!(report.clones[0].prediction, None);
    assert!(report.clones[0].skipped.is_some());
    assert_eq!(join(inputs(Vec::new())), None);
}

#[test]
fn a_device_is_filled_whole_and_without_a_peer_nothing_waits() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("device");
    let size = 9 << 20;
    fs::write(&volume, vec![0xff; size]).unwrap();
    let fill = || {
        let measured = measure_source(&settings(&volume, None), &Stop::default(), &mut |_| {});
        (measured.unwrap(), fs::read(&volume).unwrap())
    };
    let (report, bytes) = fill();
    assert_eq!(bytes.len(), size);
    let data = bytes
        .chunks(4096)
        .filter(|block| block.iter().any(|byte| *byte != 0));
    assert_eq!(
        report.facts.data_bytes,
        data.map(|block| block.len() as u64).sum::<u64>()
    );
    assert_eq!(report.facts.read_bytes, size as u64);
    assert!(
        report.facts.data_bytes < size as u64,
        "what were holes are zeros"
    );
    assert!(report.is_complete);
    assert_eq!(fill().1, bytes, "the same seed, the same bytes");
}
