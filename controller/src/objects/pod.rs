//! The pod of an agent: how it sees its volume, its flags, who it runs as and where.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource,
    HTTPGetAction, KeyToPath, NodeAffinity, NodeSelector, NodeSelectorRequirement,
    NodeSelectorTerm, PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume,
    VolumeDevice, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{CHECKPOINT_KEY, CLONE_PORT, IDENTITY_KEYS};
use crate::api::{InUsePolicy, Resume, Transport, TransportProtocol, Verify, VolumeClone};
use crate::claims::{self, VolumeMode};
use crate::names::{End, TARGET_ANNOTATION, metadata, name};
use crate::world::Settings;

const ADMIN_PORT: u16 = 9090;
/// The user and group of the image.
const AGENT_ID: i64 = 65532;
/// The image in a filesystem that stands for a block volume, as KubeVirt has it.
const DISK_IMAGE: &str = "disk.img";
/// Seconds that the source agent waits for the target agent to appear: it is only started when the
/// target listens, but a policy may take its time to open the way.
const CONNECT_TIMEOUT_SECONDS: u32 = 600;

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
            if let Some(limit) = bandwidth_limit(&spec.transport) {
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

/// What the source may send each second, in bytes; 0 for no limit.
#[must_use]
pub fn bandwidth_limit(transport: &Transport) -> Option<u64> {
    let limit = transport.bandwidth_limit.clone()?;
    claims::bytes(&Quantity(limit))
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

pub(crate) fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
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
