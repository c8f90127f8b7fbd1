//! The reasons of conditions and Events: one line each for the word and the sentence.

use std::fmt;

macro_rules! reasons {
    ($($variant:ident: $sentence:literal;)*) => {
        /// Why a condition is as it is, in a word.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $(#[doc = $sentence] $variant,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word, as in conditions and Events.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }

            /// What it means.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

reasons! {
    Accepted: "source and target can be cloned, and the source's namespace consents";
    SourceNotFound: "the source claim or snapshot does not exist";
    SourceNotBound: "the source claim has no volume yet";
    SourceIsTarget: "source and target are the same claim";
    SourceInUse: "other pods use the source claim";
    SnapshotNotReady: "the snapshot can't be restored yet";
    TargetNotFound: "the target claim does not exist";
    TargetExists: "a claim by the name of the template exists and was not made for this clone";
    TargetInUse: "other pods use the target claim";
    TargetTooSmall: "the target claim is smaller than the source";
    TargetLost: "the target claim has lost its volume";
    TargetReplaced: "another claim has the target's name now, and the clone begins anew";
    NotBound: "the volume is complete, and Kubernetes can't bind it to the target claim";
    NoSuchClone: "a claim refers to a VolumeClone that does not exist";
    NotFilled: "a claim refers to a VolumeClone that fills no claims";
    Filling: "a VolumeClone was made that fills the claim";
    WaitsForConsumer: "the target claim gets its volume with its first pod, and has none yet";
    NotGranted: "no ReferenceGrant in the source's namespace lets this namespace clone from it";
    StrategyImpossible: "the way that was asked for can't be gone";
    StrategyChosen: "a way was chosen";
    Queued: "as many clones run as may run at once";
    Rejected: "the API server refused to make, change or delete something";
    QuotaExceeded: "a resource quota does not leave room";
    Preparing: "claims, credentials and pods are made";
    PodPending: "a pod has not started, or is not ready, for more than a minute; its Events may say why";
    Unschedulable: "no node can take a pod";
    ImagePull: "a node can't get the image of the agents";
    ContainerFailed: "a container can't be started";
    AgentRestarting: "an agent failed and is started again";
    AgentReplaced: "a pod was lost or failed, and another takes its place";
    AgentFailed: "an agent failed for a reason that no other attempt mends";
    NodeSilent: "the node of an agent does not answer";
    PodLeaving: "a pod of an earlier attempt is not gone yet";
    BackoffLimitExceeded: "the agents failed more often than they may";
    DeadlineExceeded: "the clone took longer than it may";
    Transferring: "bytes travel";
    ProgressUnknown: "the controller can't ask the target agent for its progress";
    HandingOver: "the volume is complete, and is bound to the target claim";
    Verifying: "all was sent, and the target is flushed or read back";
    Provisioning: "the backend makes the target";
    TakingSnapshot: "the backend takes a snapshot of the source";
    ProvisioningFailed: "the backend could not make the target";
    Template: "each claim that refers to it is filled by a clone of its own";
    Suspended: "the clone was told to stop for now";
    Proven: "both ends computed the same digest, and all of the target is durable";
    ClonedByBackend: "the backend cloned the volume; no digest was computed";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_each_reason() {
        let manual = include_str!("../../docs/kubernetes.md");
        for reason in Reason::ALL {
            let row = format!("| `{reason}` | {} |", reason.sentence());
            assert!(manual.contains(&row), "{row}");
        }
    }
}
