//! Which ways a clone can go, with the reason for and against each, and what has to be there before
//! any is gone.

use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

use super::{Planner, Stop};
use crate::api::{GROUP, Strategy, Verdict};
use crate::claims::{self, VolumeMode};
use crate::objects::SNAPSHOT_GROUP;
use crate::reason::Reason;
use crate::world::{Grant, SnapshotClass, Surroundings, World};

/// On a storage class, by its administrator: `"false"` where its driver can't clone volumes, though
/// nothing else tells.
const CSI_CLONE_ANNOTATION: &str = "volferry.io/csi-clone";

/// Of a way that can be gone, in a word.
pub(super) const POSSIBLE: &str = "Possible";

/// Every way in the order of preference, and whether it can be gone.
pub(super) fn choose(world: &World, around: &Surroundings) -> Vec<Verdict> {
    let verdict = |strategy, found: Result<String, (&str, String)>| match found {
        Ok(message) => Verdict {
            strategy,
            possible: true,
            reason: POSSIBLE.to_owned(),
            message,
        },
        Err((reason, message)) => Verdict {
            strategy,
            possible: false,
            reason: reason.to_owned(),
            message,
        },
    };
    vec![
        verdict(Strategy::CsiClone, csi_clone(world, around)),
        verdict(Strategy::Snapshot, snapshot(world, around)),
        verdict(
            Strategy::HostAssisted,
            Ok("two agents clone the volume".to_owned()),
        ),
    ]
}

type Found = Result<String, (&'static str, String)>;

fn csi_clone(world: &World, around: &Surroundings) -> Found {
    if world.clone.spec.source.volume_snapshot.is_some() {
        return Err(("SourceIsSnapshot", "the source is a snapshot".to_owned()));
    }
    let class = by_backend(world, around, source_driver(around)?)?;
    let annotation = class.annotations().get(CSI_CLONE_ANNOTATION);
    if annotation.is_some_and(|value| value == "false") {
        let message = format!(
            "storage class {} says that its driver can't ({CSI_CLONE_ANNOTATION})",
            class.name_any()
        );
        return Err(("SwitchedOff", message));
    }
    Ok(format!("{} can clone its own volumes", class.provisioner))
}

fn snapshot(world: &World, around: &Surroundings) -> Found {
    let class = match &world.clone.spec.source.volume_snapshot {
        Some(_) => {
            let class = around
                .source_snapshot
                .as_ref()
                .and_then(|it| it.class.as_deref());
            let mut known = around.snapshot_classes.iter();
            known
                .find(|known| Some(&*known.name) == class)
                .ok_or_else(|| {
                    let message = "the snapshot names no class that is known here";
                    ("NoSnapshotClass", message.to_owned())
                })?
        }
        None => snapshot_class(around, source_driver(around)?)?,
    };
    let target = by_backend(world, around, &class.driver)?;
    Ok(format!(
        "{} restores snapshots of class {}",
        target.provisioner, class.name
    ))
}

/// The driver behind the source claim.
pub(super) fn source_driver(around: &Surroundings) -> Result<&str, (&'static str, String)> {
    let spec = around
        .source_volume
        .as_ref()
        .and_then(|volume| volume.spec.as_ref());
    let csi = spec.and_then(|spec| spec.csi.as_ref());
    csi.map(|csi| csi.driver.as_str()).ok_or_else(|| {
        let message = "no CSI driver is behind the source";
        ("NoCsiDriver", message.to_owned())
    })
}

/// The class for snapshots of a driver: the default one, else the first by name.
pub(super) fn snapshot_class<'a>(
    around: &'a Surroundings,
    driver: &str,
) -> Result<&'a SnapshotClass, (&'static str, String)> {
    let of_driver = around
        .snapshot_classes
        .iter()
        .filter(|class| class.driver == driver);
    of_driver
        .min_by_key(|class| (!class.is_default, &class.name))
        .ok_or_else(|| {
            (
                "NoSnapshotClass",
                format!("no VolumeSnapshotClass is for {driver}"),
            )
        })
}

/// What a clone or restore by the backend needs, whichever: the class of the target.
fn by_backend<'a>(
    world: &World,
    around: &'a Surroundings,
    driver: &str,
) -> Result<&'a StorageClass, (&'static str, String)> {
    let clone = &world.clone;
    // What is asked of the volume: by the template, or by a claim that has none yet.
    let waiting = world.target_claim.as_ref();
    let waiting = waiting.filter(|claim| claims::waits_for_clone(claim).is_some());
    let template = clone.spec.target.claim_template.as_ref();
    let template = template.map(|template| &template.spec);
    let asked = waiting.and_then(|claim| claim.spec.as_ref()).or(template);
    let Some(asked) = asked else {
        let message = "the target claim exists, and a backend fills new ones only";
        return Err(("TargetExists", message.to_owned()));
    };
    let named = asked.storage_class_name.as_deref();
    let class = storage_class(around, named).ok_or_else(|| {
        let message = named.map_or_else(
            || "there is no default storage class".to_owned(),
            |name| format!("there is no storage class {name}"),
        );
        ("NoStorageClass", message)
    })?;
    if class.provisioner != driver {
        let message = format!(
            "the source is on {driver}, storage class {} on {}",
            class.name_any(),
            class.provisioner
        );
        return Err(("OtherDriver", message));
    }
    // It would be filled beside the source, where no pod of its own ever comes.
    if clone.is_cross_namespace() && waiting.is_none() && binds_with_first_pod(class) {
        let message = format!(
            "storage class {} makes volumes with their first pod, and the claim that would be \
             filled in the source's namespace has none",
            class.name_any()
        );
        return Err(("WaitsForConsumer", message));
    }
    let source = around
        .source_claim
        .as_ref()
        .and_then(|claim| claim.spec.as_ref());
    let snapshot = around.source_snapshot.as_ref();
    let source_mode = source
        .map(VolumeMode::of)
        .or_else(|| snapshot.and_then(|it| it.volume_mode));
    if let (Some(source_mode), Some(mode)) = (source_mode, &asked.volume_mode)
        && source_mode.label() != mode
    {
        let message = format!("the source's mode is {}", source_mode.label());
        return Err(("OtherVolumeMode", message));
    }
    let source_bytes = match &around.source_claim {
        Some(claim) => claims::size_bytes(claim),
        None => snapshot.and_then(|it| it.restore_bytes),
    };
    if let (Some(bytes), Some(needed)) = (claims::requested_bytes(asked), source_bytes)
        && bytes < needed
    {
        let message = format!("the target asks for {bytes} bytes, the source has {needed}");
        return Err(("TooSmall", message));
    }
    Ok(class)
}

/// The class by this name, or the default one: of several the newest, as Kubernetes does it.
pub(crate) fn storage_class<'a>(
    around: &'a Surroundings,
    name: Option<&str>,
) -> Option<&'a StorageClass> {
    const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
    let mut classes = around.storage_classes.iter();
    match name {
        Some(name) => classes.find(|class| class.name_any() == name),
        None => classes
            .filter(|class| {
                class
                    .annotations()
                    .get(DEFAULT)
                    .is_some_and(|it| it == "true")
            })
            .max_by_key(|class| class.creation_timestamp()),
    }
}

/// Whether volumes of the class are made when the first pod mounts their claim.
pub(super) fn binds_with_first_pod(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

impl Planner<'_> {
    /// Whether the source's namespace lets this one clone from it.
    pub(super) fn check_consent(&self, around: &Surroundings) -> Result<(), Stop> {
        let clone = &self.world.clone;
        if !clone.is_cross_namespace() {
            return Ok(());
        }
        let source = &clone.spec.source;
        let snapshot = source.volume_snapshot.as_ref();
        let (group, kind, named) = match snapshot {
            Some(snapshot) => (SNAPSHOT_GROUP, "VolumeSnapshot", snapshot),
            None => match &source.persistent_volume_claim {
                Some(claim) => ("", "PersistentVolumeClaim", claim),
                None => return Err(no_source()),
            },
        };
        let name = named.name.as_str();
        let home = clone.target_namespace();
        let lets = |grant: &Grant| {
            let from = grant.from.iter().any(|from| {
                from.group == GROUP && from.kind == "VolumeClone" && from.namespace == home
            });
            let to = grant.to.iter().any(|to| {
                let is_named = to
                    .name
                    .as_deref()
                    .is_none_or(|it| it.is_empty() || it == name);
                to.group == group && to.kind == kind && is_named
            });
            from && to
        };
        if around.grants.iter().any(lets) {
            return Ok(());
        }
        let message = format!(
            "no ReferenceGrant in namespace {} lets VolumeClones of {home} refer to {kind} {name}; \
             create one there with spec.from [{{group: {GROUP}, kind: VolumeClone, namespace: \
             {home}}}] and spec.to [{{group: \"{group}\", kind: {kind}, name: {name}}}]",
            clone.source_namespace()
        );
        Err(Stop::hold(Reason::NotGranted, message))
    }

    /// Whether the source is there and holds something.
    pub(super) fn check_source(&self, around: &Surroundings) -> Result<(), Stop> {
        let clone = &self.world.clone;
        let namespace = clone.source_namespace();
        if let Some(named) = &clone.spec.source.volume_snapshot {
            let Some(snapshot) = &around.source_snapshot else {
                let message = format!("there is no snapshot {namespace}/{}", named.name);
                return Err(Stop::hold(Reason::SourceNotFound, message));
            };
            return if snapshot.is_ready {
                Ok(())
            } else {
                let words = snapshot
                    .error
                    .as_deref()
                    .unwrap_or("its driver still works on it");
                let message = format!("snapshot {namespace}/{}: {words}", named.name);
                Err(Stop::hold(Reason::SnapshotNotReady, message))
            };
        }
        let Some(named) = &clone.spec.source.persistent_volume_claim else {
            return Err(no_source());
        };
        match &around.source_claim {
            None => {
                let message = format!("there is no claim {namespace}/{}", named.name);
                Err(Stop::hold(Reason::SourceNotFound, message))
            }
            Some(claim) if !claims::is_bound(claim) => {
                let message = format!(
                    "claim {namespace}/{} is {}, not Bound: it has no volume yet",
                    named.name,
                    claims::phase(claim)
                );
                Err(Stop::hold(Reason::SourceNotBound, message))
            }
            Some(_) => Ok(()),
        }
    }
}

/// What the rules of the definition don't let through.
fn no_source() -> Stop {
    Stop::fail(
        Reason::SourceNotFound,
        "spec.source names neither a persistentVolumeClaim nor a volumeSnapshot",
    )
}
