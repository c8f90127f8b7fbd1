//! What a benchmark makes: each a function of what was asked for.
//!
//! Everything belongs to one Job, the target's first pod, which Kubernetes removes a while after its end: so
//! nothing stays even when nobody is left to remove it.

use std::net::IpAddr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    Affinity, ConfigMapVolumeSource, EmptyDirVolumeSource, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinity, PodAffinityTerm, PodAntiAffinity,
    Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::DynamicObject;
use serde_json::{Value, json};
use volferry_transport::Role;
use volferry_transport::mint::MintedIdentity;

use super::{Asked, Placement};
use crate::api::{
    Agents, FidelityClass, NameOf, Source, StrategyChoice, Target, Transport, VolumeClone,
    VolumeCloneSpec,
};
use crate::claims::VolumeMode;
use crate::names::End;
use crate::objects::{
    self, CLONE_PORT, EndPlan, IDENTITY_KEYS, PodPlan, View, at_port, device_path, directory_path,
    mount,
};

/// On all that a benchmark makes: its id.
pub const BENCH_LABEL: &str = "volferry.io/bench";
/// On the pods that measure: which end.
pub const BENCH_END_LABEL: &str = "volferry.io/bench-end";

/// What is told after the end, so that what stays by a mishap is removed: as long again.
const GRACE_SECONDS: u64 = 300;

/// The key of what the report is made of.
const INPUTS_KEY: &str = "inputs.json";

/// The name of something of a benchmark.
#[must_use]
pub fn name(asked: &Asked, what: &str) -> String {
    format!("volferry-bench-{}-{what}", asked.id)
}

/// The Job that all else belongs to: it runs the target's first pod.
#[must_use]
pub fn job(asked: &Asked) -> Value {
    let seconds = asked.budget.as_secs().saturating_add(GRACE_SECONDS);
    let pod = target_pod(asked);
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name(asked, "target"), "labels": labels(asked)},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": seconds,
            "ttlSecondsAfterFinished": seconds,
            "template": {"metadata": {"labels": pod.metadata.labels}, "spec": pod.spec},
        },
    })
}

/// A pod that fills the source's claim like `profile`, and dials the target's pod where that listens; on
/// one of `nodes`, where any is named.
#[must_use]
pub fn source_pod(asked: &Asked, profile: &str, target: Option<IpAddr>, nodes: &[String]) -> Value {
    let peer = target.map(|address| at_port(address, CLONE_PORT));
    let pod = end_pod(asked, End::Source, profile, peer.as_deref(), nodes);
    json!(pod)
}

/// The pod that makes one report of everything.
#[must_use]
pub fn report_pod(asked: &Asked) -> Value {
    let mut pod = target_pod(asked);
    let name = name(asked, "report");
    pod.metadata = ObjectMeta {
        name: Some(name.clone()),
        labels: Some([(BENCH_END_LABEL.to_owned(), "report".to_owned())].into()),
        ..ObjectMeta::default()
    };
    let spec = pod.spec.get_or_insert_default();
    spec.affinity = None;
    spec.volumes = Some(vec![Volume {
        name: "inputs".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name,
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }]);
    for container in &mut spec.containers {
        container.volume_devices = None;
        container.volume_mounts = Some(vec![mount("inputs", "/inputs", false)]);
        let words = ["bench", "pod", "report", &format!("/inputs/{INPUTS_KEY}")];
        container.args = Some(words.map(str::to_owned).into());
    }
    json!(pod)
}

/// What the report is made of.
#[must_use]
pub fn inputs(asked: &Asked, inputs: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name(asked, "report")},
        "data": {INPUTS_KEY: inputs.to_string()},
    })
}

/// The credentials by which the two first pods meet.
#[must_use]
pub fn secret(asked: &Asked, minted: &MintedIdentity, end: End) -> Value {
    let leaf = minted.leaf(match end {
        End::Source => Role::Source,
        End::Target => Role::Target,
    });
    let values = [&*leaf.certificate_pem, &*leaf.key_pem, minted.ca_pem()];
    let encoded = values.map(|text| json!(ByteString(text.as_bytes().to_vec())));
    let data: serde_json::Map<_, _> = IDENTITY_KEYS
        .iter()
        .map(ToString::to_string)
        .zip(encoded)
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name(asked, end.label())},
        "data": data,
    })
}

/// Lets the two first pods meet where other policies let nobody in.
#[must_use]
pub fn policy(asked: &Asked) -> Value {
    let ours = json!({"matchLabels": labels(asked)});
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name(asked, "meet")},
        "spec": {
            "podSelector": ours,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": ours}]}],
            "egress": [{"to": [{"podSelector": ours}]}],
        },
    })
}

/// A claim of `end`'s storage class.
#[must_use]
pub fn claim(asked: &Asked, end: End, what: &str, bytes: u64) -> Value {
    let class = match end {
        End::Source => &asked.from_class,
        End::Target => &asked.to_class,
    };
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name(asked, what)},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class,
            "volumeMode": asked.mode.label(),
            "resources": {"requests": {"storage": bytes.to_string()}},
        },
    })
}

/// A clone by agents from the source's claim to the claim `target`, which may take so long.
#[must_use]
pub fn clone(asked: &Asked, target: &str, nodes: &[String], seconds: u64) -> Value {
    let mut clone = like(asked, nodes);
    clone.metadata.name = Some(target.to_owned());
    clone.spec.source.persistent_volume_claim = Some(NameOf {
        name: name(asked, End::Source.label()),
    });
    clone.spec.target.persistent_volume_claim = Some(NameOf {
        name: target.to_owned(),
    });
    clone.spec.deadline_seconds = i64::try_from(seconds.max(1)).ok();
    json!(clone)
}

/// `object` in the namespace and with the labels of the benchmark, belonging to its Job once there is one.
#[must_use]
pub fn belonging(asked: &Asked, mut object: Value, job_uid: Option<&str>) -> Option<DynamicObject> {
    let metadata = &mut object["metadata"];
    metadata["namespace"] = json!(asked.namespace);
    for (key, value) in labels(asked).as_object()? {
        metadata["labels"][key] = value.clone();
    }
    if let Some(uid) = job_uid {
        metadata["ownerReferences"] = json!([{
            "apiVersion": "batch/v1", "kind": "Job", "name": name(asked, "target"), "uid": uid,
        }]);
    }
    serde_json::from_value(object).ok()
}

fn labels(asked: &Asked) -> Value {
    json!({BENCH_LABEL: asked.id})
}

/// A clone with agents as they are asked for.
fn like(asked: &Asked, nodes: &[String]) -> VolumeClone {
    let spec = VolumeCloneSpec {
        source: Source::default(),
        target: Target::default(),
        strategy: StrategyChoice::HostAssisted,
        transport: Transport {
            protocol: asked.protocol,
            streams: asked.streams.map(i32::from),
            ..Transport::default()
        },
        // The data is the benchmark's own, and a filesystem has places that are nobody's.
        accept: match asked.mode {
            VolumeMode::Block => Vec::new(),
            VolumeMode::Filesystem => vec![FidelityClass::Ownership, FidelityClass::Unreadable],
        },
        agents: Agents {
            labels: [(BENCH_LABEL.to_owned(), asked.id.clone())].into(),
            affinity: affinity(asked, nodes),
            ..Agents::default()
        },
        verify: Default::default(),
        resume: Default::default(),
        in_use_policy: Default::default(),
        deadline_seconds: None,
        stall_timeout_seconds: 600,
        backoff_limit: 0,
        suspend: false,
        ttl_seconds_after_finished: None,
    };
    let mut clone = VolumeClone::new("", spec);
    clone.metadata.namespace = Some(asked.namespace.clone());
    clone
}

/// On the nodes that were measured, once they are known; all pods on one node, or on several.
fn affinity(asked: &Asked, nodes: &[String]) -> Option<Affinity> {
    let beside = PodAffinityTerm {
        label_selector: Some(LabelSelector {
            match_labels: Some([(BENCH_LABEL.to_owned(), asked.id.clone())].into()),
            ..LabelSelector::default()
        }),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    let terms = |terms: &PodAffinityTerm| Some(vec![terms.clone()]);
    // One name in each: the API takes no more.
    let on = nodes.iter().map(|node| NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.clone()]),
        }]),
        match_expressions: None,
    });
    let affinity = Affinity {
        node_affinity: (!nodes.is_empty()).then(|| NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: on.collect(),
            }),
            ..NodeAffinity::default()
        }),
        pod_affinity: (asked.placement == Placement::SameNode).then(|| PodAffinity {
            required_during_scheduling_ignored_during_execution: terms(&beside),
            ..PodAffinity::default()
        }),
        pod_anti_affinity: (asked.placement == Placement::CrossNode).then(|| PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: terms(&beside),
            ..PodAntiAffinity::default()
        }),
    };
    (affinity != Affinity::default()).then_some(affinity)
}

/// The target's first pod, which listens. It writes data like the first profile's.
fn target_pod(asked: &Asked) -> Pod {
    let profile = asked.profiles.first().map_or("random", String::as_str);
    let listens = format!("[::]:{CLONE_PORT}");
    end_pod(asked, End::Target, profile, Some(&listens), &[])
}

/// A pod that is like an agent's, with the same resources and rights, and measures.
fn end_pod(asked: &Asked, end: End, profile: &str, peer: Option<&str>, nodes: &[String]) -> Pod {
    let clone = like(asked, nodes);
    let claim = match end {
        End::Source => name(asked, "source"),
        End::Target => name(asked, "probe"),
    };
    let view = match asked.mode {
        VolumeMode::Block => View::Device,
        VolumeMode::Filesystem => View::Directory,
    };
    let plan = PodPlan {
        claim,
        view,
        node: None,
        is_privileged: false,
        // A source's agent only reads, and this pod fills the volume first.
        end: EndPlan::Target {
            has_checkpoint: false,
            may_overwrite: false,
            zero_tail: false,
        },
    };
    let mut pod = objects::pod(&clone, &asked.settings, &plan);
    let labels = [
        (BENCH_LABEL, asked.id.as_str()),
        (BENCH_END_LABEL, end.label()),
    ];
    pod.metadata = ObjectMeta {
        name: Some(name(asked, end.label())),
        labels: Some(
            labels
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        ),
        ..ObjectMeta::default()
    };
    let spec = pod.spec.get_or_insert_default();
    spec.restart_policy = Some("Never".to_owned());
    for volume in spec.volumes.iter_mut().flatten() {
        if let Some(secret) = &mut volume.secret {
            secret.secret_name = Some(name(asked, end.label()));
        }
        // Instead of an agent's journal: the tree that a target is measured with.
        if volume.empty_dir.is_some() {
            volume.name = "tmp".to_owned();
            volume.empty_dir = Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity("64Mi".to_owned())),
                medium: None,
            });
        }
    }
    for container in &mut spec.containers {
        container.name = "bench".to_owned();
        (container.liveness_probe, container.readiness_probe) = (None, None);
        container.ports = None;
        container.command = Some(vec!["/volferry".to_owned()]);
        container.args = Some(arguments(asked, end, view, profile, peer));
        for mounted in container.volume_mounts.iter_mut().flatten() {
            if mounted.name == "state" {
                *mounted = mount("tmp", "/tmp", false);
            }
        }
    }
    pod
}

fn arguments(
    asked: &Asked,
    end: End,
    view: View,
    profile: &str,
    peer: Option<&str>,
) -> Vec<String> {
    let volume = match view {
        View::Device => device_path(End::Target),
        View::Directory | View::Image => directory_path(End::Target),
    };
    let mut arguments = vec![
        "bench".to_owned(),
        "pod".to_owned(),
        end.label().to_owned(),
        format!("--volume={volume}"),
        format!("--profile={profile}"),
        format!("--seed={}", asked.seed),
        format!("--files={}", asked.files),
        format!("--bytes={}", asked.bytes.min(MEASURED_BYTES)),
    ];
    if let Some(peer) = peer {
        arguments.push(format!("--peer={peer}"));
        arguments.push("--identity=/identity".to_owned());
    }
    if let Some(streams) = asked.streams {
        arguments.push(format!("--streams={streams}"));
    }
    if asked.protocol == crate::api::TransportProtocol::Quic {
        arguments.push("--quic".to_owned());
    }
    arguments
}

/// Bytes that are read or written to measure that: enough to outlast the caches of most devices.
const MEASURED_BYTES: u64 = 2 << 30;

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::super::tests::asked;
    use super::*;

    #[test]
    fn pods_that_measure_are_like_those_that_clone() {
        let asked = asked();
        let pod = source_pod(&asked, "vm", Some("10.0.0.7".parse().unwrap()), &[]);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"]["memory"], "256Mi");
        assert_eq!(
            container["securityContext"]["capabilities"]["drop"],
            json!(["ALL"])
        );
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
        assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            container["volumeDevices"][0]["devicePath"],
            "/dev/volferry-target"
        );
        let args = container["args"].as_array().unwrap();
        for arg in [
            "pod",
            "source",
            "--volume=/dev/volferry-target",
            "--profile=vm",
            "--peer=10.0.0.7:7700",
        ] {
            assert!(args.contains(&json!(arg)), "{arg} in {args:?}");
        }
        // The controller must not take it for an agent of its own.
        assert!(pod["metadata"]["labels"][crate::names::CLONE_LABEL].is_null());
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        assert_eq!(
            volumes[0]["persistentVolumeClaim"]["claimName"],
            "volferry-bench-x-source"
        );
        assert!(volumes[0]["persistentVolumeClaim"]["readOnly"].is_null());
        assert!(
            volumes
                .iter()
                .any(|volume| volume["secret"]["secretName"] == "volferry-bench-x-source")
        );
    }

    #[test]
    fn what_is_asked_of_nodes_holds_for_all_pods() {
        let mut asked = asked();
        let of = |asked: &Asked, nodes: &[String]| {
            clone(asked, "to", nodes, 9)["spec"]["agents"]["affinity"].clone()
        };
        assert!(of(&asked, &[]).is_null());
        let nodes = ["a".to_owned(), "b".to_owned()];
        let pinned = of(&asked, &nodes);
        let terms = &pinned["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let terms = terms["nodeSelectorTerms"].as_array().unwrap();
        assert_eq!(terms.len(), 2, "alternatives of one name each");
        asked.placement = Placement::CrossNode;
        let job = job(&asked);
        let apart = &job["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"];
        assert!(apart.is_object());
        assert_eq!(*apart, of(&asked, &nodes)["podAntiAffinity"]);
        asked.placement = Placement::SameNode;
        assert!(of(&asked, &nodes)["podAffinity"].is_object());
        assert!(report_pod(&asked)["spec"]["affinity"].is_null());
        // A further source is filled where the first was measured.
        let source = source_pod(&asked, "vm", None, &nodes[..1]);
        let on = &source["spec"]["affinity"]["nodeAffinity"];
        assert!(on.to_string().contains("\"values\":[\"a\"]"), "{on}");
        let args = source["spec"]["containers"][0]["args"].to_string();
        assert!(!args.contains("--peer"), "nobody listens anymore: {args}");
    }

    /// Reads `object` as `T` and writes it again: a field that the type doesn't know is lost.
    fn check_known<T: DeserializeOwned + Serialize>(object: &Value) {
        let typed: T = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), *object);
    }

    #[test]
    fn kubernetes_knows_every_field() {
        let asked = asked();
        check_known::<Job>(&job(&asked));
        check_known::<Pod>(&source_pod(&asked, "vm", None, &["a".to_owned()]));
        check_known::<Pod>(&report_pod(&asked));
        check_known::<ConfigMap>(&inputs(&asked, &json!({})));
        let minted = volferry_transport::mint(uuid::Uuid::nil(), asked.budget).unwrap();
        check_known::<Secret>(&secret(&asked, &minted, End::Source));
        check_known::<NetworkPolicy>(&policy(&asked));
        check_known::<PersistentVolumeClaim>(&claim(&asked, End::Source, "source", 5));
    }

    #[test]
    fn what_nobody_removes_goes_by_itself() {
        let asked = asked();
        let job = job(&asked);
        assert!(job["spec"]["ttlSecondsAfterFinished"].as_u64() > Some(asked.budget.as_secs()));
        assert!(job["spec"]["activeDeadlineSeconds"].is_u64());
        let claim = belonging(&asked, claim(&asked, End::Target, "to", 5), Some("uid")).unwrap();
        let owner = &claim.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (&*owner.kind, &*owner.name),
            ("Job", "volferry-bench-x-target")
        );
        assert_eq!(claim.metadata.labels.as_ref().unwrap()[BENCH_LABEL], "x");
    }
}
