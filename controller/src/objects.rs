//! The objects that are made for a clone: pods, policies, Secrets, claims, each a function of the
//! spec and of a few decisions.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort,
    EmptyDirVolumeSource, HTTPGetAction, KeyToPath, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, Secret, SecretVolumeSource, SecurityContext,
    TypedLocalObjectReference, Volume, VolumeDevice, VolumeMount,
};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use volferry_transport::Role;
use volferry_transport::mint::MintedIdentity;

use crate::api::{InUsePolicy, NameOf, Resume, Target, TransportProtocol, Verify, VolumeClone};
use crate::claims::{self, VolumeMode};
use crate::names::{
    CLONE_LABEL, END_LABEL, EXPIRY_ANNOTATION, End, MANAGER, SELECTED_NODE_ANNOTATION,
    TARGET_ANNOTATION, TEMPLATE_LABEL, filler_name, metadata, name, prime_name,
};
use crate::world::Settings;

/// Where the target agent listens: for the source agent, and for observers.
pub const CLONE_PORT: u16 = 7700;
const ADMIN_PORT: u16 = 9090;
/// The user and group of the image.
const AGENT_ID: i64 = 65532;
/// Keys of the target's Secret by which the controller asks for progress. The pod doesn't mount them.
pub const OBSERVER_CERTIFICATE: &str = "observer.crt";
/// See [`OBSERVER_CERTIFICATE`].
pub const OBSERVER_KEY: &str = "observer.key";
/// Keys of a Secret as the agents read them.
pub const IDENTITY_KEYS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
/// The key of the checkpoint in its ConfigMap.
const CHECKPOINT_KEY: &str = "checkpoint.json";
/// The image in a filesystem that stands for a block volume, as KubeVirt has it.
const DISK_IMAGE: &str = "disk.img";
/// Seconds that the source agent waits for the target agent to appear: it is only started when the
/// target listens, but a policy may take its time to open the way.
const CONNECT_TIMEOUT_SECONDS: u32 = 600;

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

/// How an agent sees its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// As a device.
    Device,
    /// As a directory: a tree, or the place of a disk image.
    Directory,
    /// As the disk image in a directory.
    Image,
}

/// How the two agents see their volumes. Volume modes convert as in KubeVirt: a block volume is the
/// file `disk.img` of a filesystem.
#[must_use]
pub const fn views(source: VolumeMode, target: VolumeMode) -> (View, View) {
    match (source, target) {
        (VolumeMode::Block, VolumeMode::Block) => (View::Device, View::Device),
        (VolumeMode::Block, VolumeMode::Filesystem) => (View::Device, View::Directory),
        (VolumeMode::Filesystem, VolumeMode::Block) => (View::Image, View::Device),
        (VolumeMode::Filesystem, VolumeMode::Filesystem) => (View::Directory, View::Directory),
    }
}

/// What is decided of a pod beyond the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlan {
    /// The claim that it mounts.
    pub claim: String,
    /// How its agent sees the volume.
    pub view: View,
    /// The node that it has to run on.
    pub node: Option<String>,
    /// Whether it gets the privileges that keep all of a tree.
    pub is_privileged: bool,
    /// What is particular to its end.
    pub end: EndPlan,
}

/// What is decided of one end's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndPlan {
    /// The source agent.
    Source {
        /// The target agent's address.
        target: IpAddr,
        /// What tells the state of the source from others.
        generation: Option<String>,
    },
    /// The target agent.
    Target {
        /// Whether there is a checkpoint to go on from.
        has_checkpoint: bool,
        /// Whether it may write into a filesystem that holds something.
        may_overwrite: bool,
        /// Whether the target is larger than the source, and its tail has to read as zeros.
        zero_tail: bool,
    },
}

impl EndPlan {
    const fn end(&self) -> End {
        match self {
            Self::Source { .. } => End::Source,
            Self::Target { .. } => End::Target,
        }
    }
}

/// The pod of an agent. It fits the restricted Pod Security Standard unless it is privileged.
#[must_use]
pub fn pod(clone: &VolumeClone, settings: &Settings, plan: &PodPlan) -> Pod {
    let end = plan.end.end();
    let agents = &clone.spec.agents;
    // In another namespace nothing of the spec may lend the pod rights or be taken for something
    // else by what selects pods there.
    let is_at_home = end.namespace(clone) == clone.target_namespace();
    let at_home = |yes: bool| is_at_home && yes;
    let mut metadata = metadata(clone, end);
    if is_at_home {
        merge_under(&mut metadata.labels, &agents.labels);
        merge_under(&mut metadata.annotations, &agents.annotations);
    }
    let annotations = metadata.annotations.get_or_insert_default();
    // What agents talk over is TLS of their own, and their policies let no mesh through. A proxy beside the
    // agent would also keep the pod from ending.
    for (mesh, off) in [
        ("sidecar.istio.io/inject", "false"),
        ("linkerd.io/inject", "disabled"),
    ] {
        annotations
            .entry(mesh.to_owned())
            .or_insert_with(|| off.to_owned());
    }
    if let EndPlan::Source { target, .. } = &plan.end {
        annotations.insert(TARGET_ANNOTATION.to_owned(), target.to_string());
    }
    Pod {
        metadata,
        spec: Some(PodSpec {
            restart_policy: Some("OnFailure".to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(pod_security(clone, plan)),
            containers: vec![container(clone, settings, plan)],
            volumes: Some(volumes(clone, plan)),
            node_selector: non_empty_map(&agents.node_selector),
            tolerations: non_empty(&agents.tolerations),
            affinity: affinity(agents.affinity.as_ref(), plan.node.as_deref()),
            priority_class_name: agents.priority_class_name.clone().filter(|_| is_at_home),
            service_account_name: agents.service_account_name.clone().filter(|_| is_at_home),
            image_pull_secrets: non_empty(&agents.image_pull_secrets)
                .filter(|secrets| at_home(!secrets.is_empty())),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(clone: &VolumeClone, settings: &Settings, plan: &PodPlan) -> Container {
    let end = plan.end.end();
    let probe = |path: &str| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    };
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        ..ContainerPort::default()
    };
    let mut ports = vec![port("admin", ADMIN_PORT)];
    let mut mounts = vec![mount("identity", "/identity", true)];
    if let EndPlan::Target { has_checkpoint, .. } = &plan.end {
        ports.push(port("clone", CLONE_PORT));
        mounts.push(mount("state", "/state", false));
        if *has_checkpoint {
            mounts.push(mount("checkpoint", "/checkpoint", true));
        }
    }
    let device = VolumeDevice {
        name: "volume".to_owned(),
        device_path: device_path(end),
    };
    let is_device = plan.view == View::Device;
    if !is_device {
        mounts.push(mount("volume", &directory_path(end), end == End::Source));
    }
    Container {
        name: end.label().to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        command: Some(vec![format!("/volferry-{}", end.label())]),
        args: Some(arguments(clone, plan)),
        ports: Some(ports),
        liveness_probe: Some(probe("/healthz")),
        readiness_probe: Some(probe("/readyz")),
        resources: Some(
            clone
                .spec
                .agents
                .resources
                .clone()
                .unwrap_or_else(resources),
        ),
        security_context: Some(container_security(plan)),
        // The receipt or the failure, and where an agent couldn't write one, the end of its log.
        termination_message_path: Some("/dev/termination-log".to_owned()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_devices: is_device.then(|| vec![device]),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// The flags of the agent.
fn arguments(clone: &VolumeClone, plan: &PodPlan) -> Vec<String> {
    let spec = &clone.spec;
    let end = plan.end.end();
    let volume = match plan.view {
        View::Device => device_path(end),
        View::Directory => directory_path(end),
        View::Image => format!("{}/{DISK_IMAGE}", directory_path(end)),
    };
    let mut arguments = vec![
        format!("--volume={volume}"),
        "--identity=/identity".to_owned(),
        format!("--admin-listen=[::]:{ADMIN_PORT}"),
        "--receipt=/dev/termination-log".to_owned(),
        "--log-format=json".to_owned(),
        format!("--stall-timeout={}s", spec.stall_timeout_seconds),
    ];
    if !spec.accept.is_empty() {
        let classes = spec.accept.iter().filter_map(word);
        arguments.push(format!(
            "--accept={}",
            classes.collect::<Vec<_>>().join(",")
        ));
    }
    match &plan.end {
        EndPlan::Source { target, generation } => {
            arguments.push(format!("--target={}", at_port(*target, CLONE_PORT)));
            arguments.push(format!("--connect-timeout={CONNECT_TIMEOUT_SECONDS}"));
            if let Some(streams) = spec.transport.streams {
                arguments.push(format!("--streams={streams}"));
            }
            arguments.push(format!(
                "--transport={}",
                match spec.transport.protocol {
                    TransportProtocol::Tcp => "tls",
                    TransportProtocol::Quic => "quic",
                    TransportProtocol::Auto => "auto",
                }
            ));
            if let Some(compression) = &spec.transport.compression {
                arguments.push(format!("--compression={compression}"));
            }
            let limit = spec.transport.bandwidth_limit.clone();
            if let Some(limit) = limit.and_then(|limit| claims::bytes(&Quantity(limit))) {
                arguments.push(format!("--bandwidth-limit={limit}"));
            }
            if let Some(generation) = generation {
                arguments.push(format!("--source-generation={generation}"));
            }
            if plan.view == View::Directory && spec.in_use_policy == InUsePolicy::Allow {
                arguments.push("--allow-changed".to_owned());
            }
        }
        EndPlan::Target {
            has_checkpoint,
            may_overwrite,
            zero_tail,
        } => {
            arguments.push(format!("--listen=[::]:{CLONE_PORT}"));
            arguments.push("--state-dir=/state".to_owned());
            arguments.push(format!(
                "--verify={}",
                match spec.verify {
                    Verify::None => "none",
                    Verify::Digest => "digest",
                    Verify::Readback => "readback",
                }
            ));
            arguments.push(format!(
                "--resume={}",
                match spec.resume {
                    Resume::Journal => "journal",
                    Resume::Digest => "digest",
                    Resume::None => "none",
                }
            ));
            if *has_checkpoint {
                arguments.push(format!("--resume-from=/checkpoint/{CHECKPOINT_KEY}"));
            }
            if *may_overwrite {
                arguments.push("--overwrite".to_owned());
            }
            if *zero_tail {
                arguments.push("--zero-tail".to_owned());
            }
        }
    }
    arguments
}

/// Who the pod runs as.
fn pod_security(clone: &VolumeClone, plan: &PodPlan) -> PodSecurityContext {
    let user = &clone.spec.agents.security_context;
    // On a filesystem that is mounted the kubelet gives every file to this group: never the source's.
    let fs_group = match (&plan.end, plan.view) {
        (EndPlan::Source { .. }, View::Directory | View::Image) => None,
        _ => Some(user.fs_group.unwrap_or(AGENT_ID)),
    };
    PodSecurityContext {
        run_as_non_root: Some(!plan.is_privileged),
        run_as_user: Some(if plan.is_privileged {
            0
        } else {
            user.run_as_user.unwrap_or(AGENT_ID)
        }),
        run_as_group: Some(if plan.is_privileged {
            0
        } else {
            user.run_as_group.unwrap_or(AGENT_ID)
        }),
        fs_group: fs_group.filter(|_| !plan.is_privileged),
        supplemental_groups: non_empty(&user.supplemental_groups),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

fn container_security(plan: &PodPlan) -> SecurityContext {
    // As docs/operations.md lists them under "Trees".
    let capabilities: &[&str] = match &plan.end {
        _ if !plan.is_privileged => &[],
        EndPlan::Source { .. } => &["DAC_READ_SEARCH"],
        EndPlan::Target { .. } => &[
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "MKNOD",
            "SETFCAP",
            "SYS_ADMIN",
        ],
    };
    let added: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
    // Kubernetes refuses a container with SYS_ADMIN that may not escalate.
    let may_escalate = added.iter().any(|capability| capability == "SYS_ADMIN");
    SecurityContext {
        allow_privilege_escalation: Some(may_escalate),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: non_empty(&added),
        }),
        ..SecurityContext::default()
    }
}

fn volumes(clone: &VolumeClone, plan: &PodPlan) -> Vec<Volume> {
    let end = plan.end.end();
    let named = |name: &str| Volume {
        name: name.to_owned(),
        ..Volume::default()
    };
    let item = |key: &&str| KeyToPath {
        key: (*key).to_owned(),
        path: (*key).to_owned(),
        mode: None,
    };
    // Without an fsGroup the files belong to root, and the agent isn't root.
    let has_group = pod_security(clone, plan).fs_group.is_some();
    let mut volumes = vec![
        Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: plan.claim.clone(),
                // A filesystem that was not unmounted in order may need to be written to be read.
                read_only: (end == End::Source && plan.view == View::Device).then_some(true),
            }),
            ..named("volume")
        },
        Volume {
            secret: Some(SecretVolumeSource {
                secret_name: Some(name(clone, end)),
                items: Some(IDENTITY_KEYS.iter().map(item).collect()),
                default_mode: Some(if has_group { 0o440 } else { 0o444 }),
                optional: None,
            }),
            ..named("identity")
        },
    ];
    if let EndPlan::Target { has_checkpoint, .. } = &plan.end {
        volumes.push(Volume {
            // It outlives the container, not the pod: what outlives the pod is the checkpoint.
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity("16Mi".to_owned())),
                medium: None,
            }),
            ..named("state")
        });
        if *has_checkpoint {
            volumes.push(Volume {
                config_map: Some(ConfigMapVolumeSource {
                    name: name(clone, end),
                    ..ConfigMapVolumeSource::default()
                }),
                ..named("checkpoint")
            });
        }
    }
    volumes
}

/// What an agent needs unless the spec says otherwise.
fn resources() -> ResourceRequirements {
    let quantity = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    ResourceRequirements {
        requests: Some([quantity("cpu", "500m"), quantity("memory", "128Mi")].into()),
        limits: Some([quantity("memory", "256Mi")].into()),
        claims: None,
    }
}

/// What the spec asks for, and the one node where the volume is.
fn affinity(given: Option<&Affinity>, node: Option<&str>) -> Option<Affinity> {
    let Some(node) = node else {
        return given.cloned();
    };
    let pinned = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let mut affinity = given.cloned().unwrap_or_default();
    let node_affinity = affinity
        .node_affinity
        .get_or_insert_with(NodeAffinity::default);
    let required = node_affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(NodeSelector::default);
    if required.node_selector_terms.is_empty() {
        required
            .node_selector_terms
            .push(NodeSelectorTerm::default());
    }
    // Terms are alternatives: the node has to stand in each.
    for term in &mut required.node_selector_terms {
        term.match_fields
            .get_or_insert_default()
            .push(pinned.clone());
    }
    Some(affinity)
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
/// show credentials of theirs.
#[must_use]
pub fn secrets(
    clone: &VolumeClone,
    minted: &MintedIdentity,
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
        metadata.annotations.get_or_insert_default().insert(
            EXPIRY_ANNOTATION.to_owned(),
            expires_unix_seconds.to_string(),
        );
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

/// The target claim of a template; absent without one, or where neither it nor the source tells a
/// size. What the template leaves out comes from `source`.
#[must_use]
pub fn target_claim(
    clone: &VolumeClone,
    source: &PersistentVolumeClaim,
) -> Option<PersistentVolumeClaim> {
    let template = clone.spec.target.claim_template.as_ref()?;
    let given = source.spec.clone().unwrap_or_default();
    let mut spec = template.spec.clone();
    // What it is filled from is for the clone to say.
    (spec.data_source, spec.data_source_ref) = (None, None);
    let source_mode = VolumeMode::of(&given);
    spec.volume_mode = spec
        .volume_mode
        .or_else(|| Some(source_mode.label().to_owned()));
    if spec.access_modes.as_ref().is_none_or(Vec::is_empty) {
        spec.access_modes = given.access_modes;
    }
    if claims::requested_bytes(&spec).is_none() {
        let source_bytes = claims::size_bytes(source)?;
        let bytes = match (source_mode, VolumeMode::of(&spec)) {
            (VolumeMode::Block, VolumeMode::Filesystem) => with_overhead(source_bytes),
            _ => source_bytes,
        };
        spec.resources = Some(claims::request(bytes));
    }
    // It belongs to its user, not to the clone: no owner, so that it stays.
    let found_by = metadata(clone, End::Target);
    let mut labels = template.metadata.labels.clone();
    // Only what it is found by: what application it is of, its user knows.
    let found_by_labels = found_by.labels.unwrap_or_default().into_iter();
    labels.extend(found_by_labels.filter(|(key, _)| key == CLONE_LABEL || key == END_LABEL));
    let mut annotations = template.metadata.annotations.clone();
    annotations.extend(found_by.annotations.unwrap_or_default());
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(template.metadata.name.clone()),
            namespace: Some(clone.target_namespace().to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// The claim in `namespace` that is filled in the place of the target claim: as large as that, and of
/// its kind. Of a claim that waits for its first pod, `node` is where that will be.
#[must_use]
pub fn prime_claim(
    clone: &VolumeClone,
    namespace: &str,
    like: &PersistentVolumeClaim,
    node: Option<String>,
) -> PersistentVolumeClaim {
    let end = if namespace == clone.target_namespace() {
        End::Target
    } else {
        End::Source
    };
    let mut metadata = metadata(clone, end);
    metadata.name = Some(prime_name(clone));
    if let Some(node) = node {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(SELECTED_NODE_ANNOTATION.to_owned(), node);
    }
    let like = like.spec.clone().unwrap_or_default();
    PersistentVolumeClaim {
        metadata,
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: like.access_modes,
            resources: like.resources,
            storage_class_name: like.storage_class_name,
            volume_attributes_class_name: like.volume_attributes_class_name,
            volume_mode: like.volume_mode,
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// The target claim of a template that takes over the volume of `prime`.
#[must_use]
pub fn claim_of_volume(
    clone: &VolumeClone,
    prime: &PersistentVolumeClaim,
    volume: &str,
) -> Option<PersistentVolumeClaim> {
    let mut claim = target_claim(clone, prime)?;
    let spec = claim.spec.get_or_insert_default();
    // With its name in it nobody makes another volume for the claim.
    spec.volume_name = Some(volume.to_owned());
    let filled = prime.spec.as_ref();
    spec.storage_class_name = filled.and_then(|spec| spec.storage_class_name.clone());
    Some(claim)
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

/// `claim`, filled by the backend from what `reference` names.
#[must_use]
pub fn filled_from(
    mut claim: PersistentVolumeClaim,
    reference: &TypedLocalObjectReference,
) -> PersistentVolumeClaim {
    claim.spec.get_or_insert_default().data_source = Some(reference.clone());
    claim
}

/// A claim of this mode and size and nothing else.
#[must_use]
pub fn claim_of(mode: Option<VolumeMode>, bytes: Option<u64>) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        spec: Some(PersistentVolumeClaimSpec {
            volume_mode: mode.map(|mode| mode.label().to_owned()),
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: bytes.map(claims::request),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// The claim in the source's namespace to which its snapshot is restored, for the source agent.
#[must_use]
pub fn restored_claim(
    clone: &VolumeClone,
    like: &PersistentVolumeClaim,
    class: &str,
    snapshot: &str,
) -> PersistentVolumeClaim {
    let claim = PersistentVolumeClaim {
        metadata: metadata(clone, End::Source),
        spec: like.spec.clone().map(|spec| PersistentVolumeClaimSpec {
            storage_class_name: Some(class.to_owned()),
            ..spec
        }),
        status: None,
    };
    let reference = TypedLocalObjectReference {
        api_group: Some(SNAPSHOT_GROUP.to_owned()),
        kind: "VolumeSnapshot".to_owned(),
        name: snapshot.to_owned(),
    };
    filled_from(claim, &reference)
}

/// The kind of snapshots, which is no part of Kubernetes' own API.
#[must_use]
pub fn snapshot_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(
        SNAPSHOT_GROUP,
        "v1",
        "VolumeSnapshot",
    ))
}

/// A snapshot of the source claim, taken for this clone.
#[must_use]
pub fn snapshot(clone: &VolumeClone, claim: &str, class: &str) -> DynamicObject {
    let mut snapshot = DynamicObject::new(&name(clone, End::Source), &snapshot_resource());
    snapshot.metadata = metadata(clone, End::Source);
    snapshot.data = serde_json::json!({
        "spec": {
            "volumeSnapshotClassName": class,
            "source": {"persistentVolumeClaimName": claim},
        },
    });
    snapshot
}

/// Bytes of a filesystem that has room for a file of so many: a sixteenth more, in whole MiB.
const fn with_overhead(bytes: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    bytes
        .saturating_add(bytes / 16)
        .div_ceil(MIB)
        .saturating_mul(MIB)
}

/// An address with a port, as a dialer reads it.
#[must_use]
pub fn at_port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

pub(crate) fn device_path(end: End) -> String {
    format!("/dev/volferry-{}", end.label())
}

pub(crate) fn directory_path(end: End) -> String {
    format!("/{}", end.label())
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// The word of a unit variant as it is written.
fn word(value: &impl serde::Serialize) -> Option<String> {
    let value = serde_json::to_value(value).ok()?;
    value.as_str().map(str::to_owned)
}

fn non_empty<T: Clone>(items: &[T]) -> Option<Vec<T>> {
    (!items.is_empty()).then(|| items.to_vec())
}

fn non_empty_map(items: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!items.is_empty()).then(|| items.clone())
}

/// Adds what is not there yet.
fn merge_under(ours: &mut Option<BTreeMap<String, String>>, theirs: &BTreeMap<String, String>) {
    let ours = ours.get_or_insert_default();
    for (key, value) in theirs {
        ours.entry(key.clone()).or_insert_with(|| value.clone());
    }
}
