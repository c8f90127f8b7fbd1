//! Nodes that don't answer.

use serde_json::json;

use super::{at, condition, decide_in, ended_well, pod, receipt, under_way};
use crate::api::Phase;
use crate::names::End;

/// As Kubernetes marks the pods of a node that it hears nothing of.
fn cut_off() -> serde_json::Value {
    json!({"status": {"conditions": [
        {"type": "Ready", "status": "False"},
        {"type": "ContainersReady", "status": "True"},
    ]}})
}

#[test]
fn a_node_that_does_not_answer_is_told_and_waited_for() {
    let mut world = under_way(&json!({}));
    let target = pod(&world, End::Target, &cut_off());
    let source = pod(&world, End::Source, &json!({}));
    world.pods = vec![target, source];
    let (steps, decision) = decide_in(&mut world);
    assert_eq!(steps, Vec::<String>::new());
    let (is_progressing, reason, message) = condition(&world, "Progressing");
    assert_eq!((is_progressing, reason), ("True", "NodeSilent"));
    assert!(message.contains("node node-of-target, where the target agent"));
    assert_eq!(decision.notes.len(), 1);
    assert!(decision.notes[0].is_warning);
    let (_, again) = decide_in(&mut world);
    assert_eq!(again.notes, Vec::new(), "it is told once");

    // The source has ended well, and the target most likely too: that is not the source's failure, however long
    // the node is silent.
    world.pods[1] = ended_well(&world, End::Source, 0, &receipt());
    world.now = at(1000);
    assert_eq!(decide_in(&mut world).0, Vec::<String>::new());
    let status = world.clone.status.clone().unwrap();
    assert_eq!(status.attempts.source.failures, 0);

    // It is heard of again.
    world.pods[0] = ended_well(&world, End::Target, 0, &receipt());
    decide_in(&mut world);
    assert_eq!(world.clone.status.unwrap().phase, Phase::Ready);
}

#[test]
fn a_pod_that_its_kubelet_finds_not_ready_is_no_sign_of_a_lost_node() {
    for conditions in [
        json!([{"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"},
            {"type": "ContainersReady", "status": "True"}]),
        json!([{"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
            {"type": "ContainersReady", "status": "False", "reason": "ContainersNotReady"}]),
        json!([{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]),
    ] {
        let mut world = under_way(&json!({}));
        let change = json!({"status": {"conditions": conditions}});
        world.pods = End::ALL.map(|end| pod(&world, end, &change)).into();
        decide_in(&mut world);
        assert_eq!(
            condition(&world, "Progressing").1,
            "Transferring",
            "{change}"
        );
    }
}
