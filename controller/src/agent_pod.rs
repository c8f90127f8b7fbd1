//! What a pod tells of its agent: whether it waits, runs or has ended, and with what words.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Deserialize;
use volferry_protocol::receipt::Receipt;

use crate::names::END_LABEL;
use crate::reason::Reason;

/// An agent's pod as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    /// The pod's uid.
    pub(crate) uid: String,
    /// The node that it was given.
    pub(crate) node: Option<String>,
    /// What it does.
    pub(crate) state: State,
    /// How often its container was started again.
    pub(crate) restarts: i32,
    /// How the container ended the last time that it ended.
    pub(crate) last_end: Option<Ended>,
    /// Since when its container runs, if it does.
    pub(crate) runs_since: Option<Timestamp>,
    /// When the pod became ready last, or stopped being so, if that is known.
    pub(crate) turned_at: Option<Timestamp>,
    /// When the container ended that is not started again, if that is known.
    pub(crate) ended_at: Option<Timestamp>,
    /// Whether its node does not answer: what the pod shows is what was so before.
    pub(crate) is_cut_off: bool,
}

/// What a pod does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It is about to go.
    Leaving,
    /// It has not started, or not again.
    Waiting {
        /// Why, in a word.
        reason: Reason,
        /// In the API's own words.
        message: String,
    },
    /// It runs.
    Running {
        /// Where it can be reached.
        address: Option<IpAddr>,
        /// Whether it does its work: a target listens and holds its volume.
        is_ready: bool,
    },
    /// It ended well.
    Succeeded,
    /// It ended, and won't start again.
    Failed {
        /// The API's words.
        message: String,
    },
}

/// What an agent left when it ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ended {
    /// The proof, and the line that it came in.
    Proven(Box<Receipt>, String),
    /// A failure of the agent's own table.
    Failed {
        /// The code, as in docs/operations.md.
        code: String,
        /// Whether another attempt may go better by itself.
        is_retryable: bool,
        /// What failed, why, and what to do.
        text: String,
    },
    /// It was killed, or wrote something else.
    Died(String),
}

impl Ended {
    /// Why it ended, in words.
    #[must_use]
    pub(crate) fn words(&self) -> &str {
        match self {
            Self::Proven(..) => "it ended well",
            Self::Failed { text, .. } => text,
            Self::Died(words) => words,
        }
    }

    /// Reads a termination message.
    fn read(message: &str, exit_code: i32, reason: Option<&str>) -> Self {
        #[derive(Deserialize)]
        struct Note {
            failure: Body,
        }
        #[derive(Deserialize)]
        struct Body {
            code: String,
            retryable: bool,
            text: String,
        }
        if let Ok(receipt) = serde_json::from_str::<Receipt>(message) {
            return Self::Proven(Box::new(receipt), message.trim().to_owned());
        }
        if let Ok(Note { failure }) = serde_json::from_str(message) {
            return Self::Failed {
                code: failure.code,
                is_retryable: failure.retryable,
                text: failure.text,
            };
        }
        let reason = reason.unwrap_or("Error");
        let words = message.trim();
        Self::Died(if words.is_empty() {
            format!("it ended with exit code {exit_code} ({reason})")
        } else {
            format!("it ended with exit code {exit_code} ({reason}): {words}")
        })
    }
}

impl Seen {
    /// Looks at `pod`.
    #[must_use]
    pub(crate) fn of(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        // Others may have been put beside the agent's, which is named after its end.
        let end = pod.labels().get(END_LABEL);
        let mut containers = status.container_statuses.iter().flatten();
        let container = containers.find(|found| end.is_none_or(|end| found.name == *end));
        let spec = pod.spec.as_ref();
        Self {
            uid: pod.uid().unwrap_or_default(),
            node: spec.and_then(|spec| spec.node_name.clone()),
            state: state(pod, &status, container),
            restarts: container.map_or(0, |container| container.restart_count),
            last_end: container.and_then(last_end),
            runs_since: container.and_then(runs_since),
            turned_at: turned_at(&status),
            ended_at: container.and_then(ended_at),
            is_cut_off: is_cut_off(&status),
        }
    }
}

/// Whether the pod is not ready though its containers are: so Kubernetes marks the pods of a node whose kubelet it has
/// not heard of for most of a minute. A kubelet says why a pod is not ready.
fn is_cut_off(status: &PodStatus) -> bool {
    let condition = |name: &str| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.find(|condition| condition.type_ == name)
    };
    let ready = condition("Ready");
    let containers = condition("ContainersReady");
    ready.is_some_and(|it| it.status == "False" && it.reason.is_none())
        && containers.is_some_and(|it| it.status == "True")
}

fn state(pod: &Pod, status: &PodStatus, container: Option<&ContainerStatus>) -> State {
    if pod.metadata.deletion_timestamp.is_some() {
        return State::Leaving;
    }
    match status.phase.as_deref() {
        Some("Succeeded") => State::Succeeded,
        Some("Failed") => State::Failed {
            message: failed_words(status, container),
        },
        Some("Running") => match container.and_then(waiting) {
            Some((reason, message)) => State::Waiting { reason, message },
            None => State::Running {
                address: status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
                is_ready: container.is_some_and(|container| container.ready),
            },
        },
        _ => {
            let unscheduled =
                status.conditions.iter().flatten().find(|condition| {
                    condition.type_ == "PodScheduled" && condition.status == "False"
                });
            let (reason, message) = match (unscheduled, container.and_then(waiting)) {
                (Some(condition), _) => (
                    Reason::Unschedulable,
                    condition.message.clone().unwrap_or_default(),
                ),
                (None, Some(waiting)) => waiting,
                (None, None) => (Reason::PodPending, "the pod waits to be started".to_owned()),
            };
            State::Waiting { reason, message }
        }
    }
}

/// Why a container waits, where it does.
fn waiting(container: &ContainerStatus) -> Option<(Reason, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let word = waiting.reason.as_deref().unwrap_or_default();
    let reason = match word {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError"
        | "SignatureValidationFailed" => Reason::ImagePull,
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Reason::ContainerFailed
        }
        "CrashLoopBackOff" => Reason::AgentRestarting,
        _ => Reason::PodPending,
    };
    let message = match waiting.message.as_deref() {
        Some(message) if !message.is_empty() => format!("{word}: {message}"),
        _ => word.to_owned(),
    };
    Some((reason, message))
}

/// How a container ended last, be it for good or not.
fn last_end(container: &ContainerStatus) -> Option<Ended> {
    let states = [container.state.as_ref(), container.last_state.as_ref()];
    let ended = states
        .into_iter()
        .flatten()
        .find_map(|state| state.terminated.as_ref())?;
    Some(Ended::read(
        ended.message.as_deref().unwrap_or_default(),
        ended.exit_code,
        ended.reason.as_deref(),
    ))
}

fn runs_since(container: &ContainerStatus) -> Option<Timestamp> {
    let runs = |state: &ContainerState| Some(state.running.as_ref()?.started_at.clone()?.0);
    container.state.as_ref().and_then(runs)
}

fn turned_at(status: &PodStatus) -> Option<Timestamp> {
    let conditions = status.conditions.iter().flatten();
    let readiness =
        conditions.filter(|it| matches!(it.type_.as_str(), "Ready" | "ContainersReady"));
    let turned_at = readiness.filter_map(|it| Some(it.last_transition_time.as_ref()?.0));
    turned_at.max()
}

fn ended_at(container: &ContainerStatus) -> Option<Timestamp> {
    let ended = |state: &ContainerState| Some(state.terminated.as_ref()?.finished_at.clone()?.0);
    container.state.as_ref().and_then(ended)
}

/// Why a pod failed: what its agent wrote, or who took the pod away.
fn failed_words(status: &PodStatus, container: Option<&ContainerStatus>) -> String {
    let of_pod = [&status.reason, &status.message];
    let of_pod: Vec<_> = of_pod.into_iter().flatten().cloned().collect();
    if !of_pod.is_empty() {
        return of_pod.join(": ");
    }
    let end = container.and_then(last_end);
    end.map_or_else(|| "the pod failed".to_owned(), |end| end.words().to_owned())
}
