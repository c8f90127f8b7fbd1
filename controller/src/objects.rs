//! The objects that are made for a clone: pods, policies, Secrets, claims, each a function of the
//! spec and of a few decisions.

mod pod;
mod volumes;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::DynamicObject;
use uuid::Uuid;
use volferry_transport::Role;
use volferry_transport::mint::MintedIdentity;

pub use self::pod::{EndPlan, PodPlan, View, at_port, bandwidth_limit, pod, views};
pub(crate) use self::pod::{device_path, directory_path, mount};
pub use self::volumes::{
    claim_of, claim_of_volume, filled_from, prime_claim, restored_claim, snapshot,
    snapshot_resource, target_claim,
};
use crate::api::{NameOf, Target, TransportProtocol, VolumeClone};
use crate::names::{
    CLONE_LABEL, END_LABEL, EXPIRY_ANNOTATION, End, MANAGER, MINTING_ANNOTATION, TEMPLATE_LABEL,
    filler_name, metadata,
};
use crate::world::Settings;

/// Where the target agent listens: for the source agent, and for observers.
pub const CLONE_PORT: u16 = 7700;
/// Keys of the target's Secret by which the controller asks for progress. The pod doesn't mount them.
pub const OBSERVER_CERTIFICATE: &str = "observer.crt";
/// See [`OBSERVER_CERTIFICATE`].
pub const OBSERVER_KEY: &str = "observer.key";
/// Keys of a Secret as the agents read them.
pub const IDENTITY_KEYS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
/// The key of the checkpoint in its ConfigMap.
const CHECKPOINT_KEY: &str = "checkpoint.json";

/// The group of snapshots.
pub const SNAPSHOT_GROUP: &str = "snapshot.storage.k8s.io";

/// An object to apply.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// An agent.
    Pod(Box<Pod>),
    /// Which way bytes may go.
    NetworkPolicy(Box<NetworkPolicy>),
    /// A volume.
    Claim(Box<PersistentVolumeClaim>),
    /// What is durable.
    ConfigMap(Box<ConfigMap>),
    /// A snapshot of the source.
    Snapshot(Box<DynamicObject>),
    /// What fills a claim that refers to a `VolumeClone`.
    Clone(Box<VolumeClone>),
}

impl Object {
    /// What it is, for conditions and logs.
    #[must_use]
    pub fn describe(&self) -> String {
        let (kind, metadata) = match self {
            Self::Pod(pod) => ("pod", &pod.metadata),
            Self::NetworkPolicy(policy) => ("network policy", &policy.metadata),
            Self::Claim(claim) => ("claim", &claim.metadata),
            Self::ConfigMap(map) => ("config map", &map.metadata),
            Self::Snapshot(snapshot) => ("snapshot", &snapshot.metadata),
            Self::Clone(clone) => ("VolumeClone", &clone.metadata),
        };
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!(
            "{kind} {}/{}",
            part(&metadata.namespace),
            part(&metadata.name)
        )
    }
}

/// The policy of one end. The target takes connections from the source agent and from the controller
/// and opens none; the source takes none and reaches the target alone.
#[must_use]
pub fn policy(clone: &VolumeClone, settings: &Settings, end: End) -> NetworkPolicy {
    let agent = |end: End| NetworkPolicyPeer {
        namespace_selector: Some(namespace_named(end.namespace(clone))),
        pod_selector: Some(LabelSelector {
            match_labels: Some(agent_labels(clone, end)),
            ..LabelSelector::default()
        }),
        ip_block: None,
    };
    let controller = NetworkPolicyPeer {
        namespace_selector: Some(namespace_named(&settings.namespace)),
        pod_selector: Some(LabelSelector {
            match_labels: Some([("app.kubernetes.io/name".to_owned(), MANAGER.to_owned())].into()),
            ..LabelSelector::default()
        }),
        ip_block: None,
    };
    let port = |protocol: &str| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(CLONE_PORT))),
        protocol: Some(protocol.to_owned()),
        end_port: None,
    };
    // The controller asks for progress over TCP, whatever the agents talk over.
    let mut ports = vec![port("TCP")];
    if clone.spec.transport.protocol != TransportProtocol::Tcp {
        ports.push(port("UDP"));
    }
    let (ingress, egress) = match end {
        End::Target => (
            vec![NetworkPolicyIngressRule {
                from: Some(vec![agent(End::Source), controller]),
                ports: Some(ports),
            }],
            Vec::new(),
        ),
        End::Source => (
            Vec::new(),
            vec![NetworkPolicyEgressRule {
                to: Some(vec![agent(End::Target)]),
                ports: Some(ports),
            }],
        ),
    };
    NetworkPolicy {
        metadata: metadata(clone, end),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(agent_labels(clone, end)),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress),
            egress: Some(egress),
        }),
    }
}

fn agent_labels(clone: &VolumeClone, end: End) -> BTreeMap<String, String> {
    [
        (CLONE_LABEL.to_owned(), clone.uid().to_owned()),
        (END_LABEL.to_owned(), end.label().to_owned()),
    ]
    .into()
}

/// Kubernetes labels each namespace with its name.
fn namespace_named(name: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some([("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into()),
        ..LabelSelector::default()
    }
}

/// The Secrets of both ends, of the type that Kubernetes has for credentials. The target's also has
/// the observer's, for the controller. `trusted` are authorities that stay trusted while pods still
/// show credentials of theirs. Both say which `minting` they are of.
#[must_use]
pub fn secrets(
    clone: &VolumeClone,
    minted: &MintedIdentity,
    minting: Uuid,
    trusted: &str,
    expires_unix_seconds: u64,
) -> [Secret; 2] {
    End::ALL.map(|end| {
        let leaf = minted.leaf(match end {
            End::Source => Role::Source,
            End::Target => Role::Target,
        });
        let entry = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
        let authorities = format!("{}{trusted}", minted.ca_pem());
        let [certificate, key, authority] = IDENTITY_KEYS;
        let mut data = BTreeMap::from([
            entry(certificate, &leaf.certificate_pem),
            entry(key, &leaf.key_pem),
            entry(authority, &authorities),
        ]);
        if end == End::Target {
            let observer = minted.leaf(Role::Observer);
            data.extend([
                entry(OBSERVER_CERTIFICATE, &observer.certificate_pem),
                entry(OBSERVER_KEY, &observer.key_pem),
            ]);
        }
        let mut metadata = metadata(clone, end);
        metadata.annotations.get_or_insert_default().extend([
            (
                EXPIRY_ANNOTATION.to_owned(),
                expires_unix_seconds.to_string(),
            ),
            (MINTING_ANNOTATION.to_owned(), minting.to_string()),
        ]);
        Secret {
            metadata,
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data),
            ..Secret::default()
        }
    })
}

/// The checkpoint, for the next target agent to mount.
#[must_use]
pub fn checkpoint(clone: &VolumeClone, checkpoint: &str) -> ConfigMap {
    ConfigMap {
        metadata: metadata(clone, End::Target),
        data: Some([(CHECKPOINT_KEY.to_owned(), checkpoint.to_owned())].into()),
        ..ConfigMap::default()
    }
}

/// The clone that fills `claim`, made after `template`. It belongs to the claim and goes with it.
#[must_use]
pub fn filler(template: &VolumeClone, claim: &PersistentVolumeClaim) -> Option<VolumeClone> {
    let uid = claim.metadata.uid.clone()?;
    let name = claim.metadata.name.clone()?;
    let mut spec = template.spec.clone();
    spec.target = Target {
        persistent_volume_claim: Some(NameOf { name: name.clone() }),
        ..Target::default()
    };
    let mut clone = VolumeClone::new(&filler_name(&uid), spec);
    clone
        .metadata
        .namespace
        .clone_from(&template.metadata.namespace);
    clone.metadata.labels = Some(
        [
            ("app.kubernetes.io/managed-by", MANAGER),
            (TEMPLATE_LABEL, template.uid()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
    );
    clone.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "PersistentVolumeClaim".to_owned(),
        name,
        uid,
        controller: Some(true),
        block_owner_deletion: Some(false),
    }]);
    Some(clone)
}
