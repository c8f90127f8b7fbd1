//! What the controller would do, as it would decide it.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use serde_json::json;

use crate::api::VolumeClone;
use crate::decide::{Step, decide};
use crate::names::{self, End, FINALIZER};
use crate::objects::Object;
use crate::world::{Belonging, Kind, World};

/// What the controller would do, one thing after the other, as if everything went well.
#[derive(Clone, Debug)]
pub(super) struct Rehearsal {
    /// The clone with its last status.
    pub(super) clone: VolumeClone,
    /// What would be made.
    pub(super) objects: Vec<Object>,
}

/// Asks the controller's decision until it wants nothing new, and has each wish come true.
pub(super) fn rehearse(mut world: World) -> Rehearsal {
    /// Each makes something, or it ends: a clone takes five.
    const ROUNDS_MAX: usize = 16;
    let mut objects: Vec<Object> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let decision = decide(&world);
        if let Some(status) = decision.status {
            world.clone.status = Some(*status);
        }
        let mut is_new = false;
        for step in decision.steps {
            is_new |= match step {
                Step::AddFinalizer => {
                    let finalizers = world.clone.metadata.finalizers.get_or_insert_default();
                    finalizers.push(FINALIZER.to_owned());
                    true
                }
                Step::Mint => {
                    let had = world.belongings.len();
                    for end in End::ALL {
                        let namespace = end.namespace(&world.clone).to_owned();
                        let name = names::name(&world.clone, end);
                        belong(&mut world, Kind::Secret, namespace, name);
                    }
                    world.belongings.len() > had
                }
                Step::Apply(object) if !objects.contains(&object) => {
                    appear(&mut world, &object);
                    objects.push(object);
                    true
                }
                _ => false,
            };
        }
        if !is_new {
            break;
        }
    }
    Rehearsal {
        clone: world.clone,
        objects,
    }
}

fn belong(world: &mut World, kind: Kind, namespace: String, name: String) {
    if !world.has(kind, &namespace, &name) {
        world.belongings.push(Belonging {
            kind,
            uid: name.clone(),
            namespace,
            name,
            annotations: Default::default(),
            is_deleting: false,
        });
    }
}

/// Has `object` be there and well.
fn appear(world: &mut World, object: &Object) {
    let place = |metadata: &ObjectMeta| {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        (part(&metadata.namespace), part(&metadata.name))
    };
    match object {
        Object::Pod(pod) => {
            let mut pod = (**pod).clone();
            let end = pod
                .labels()
                .get(names::END_LABEL)
                .cloned()
                .unwrap_or_default();
            pod.metadata.uid = Some(pod.name_any());
            // Of the addresses that are for documents (RFC 5737).
            let status = json!({"phase": "Running", "podIP": "192.0.2.1", "containerStatuses": [{
                "name": end, "ready": true, "restartCount": 0, "image": "", "imageID": "",
                "state": {"running": {}}}]});
            pod.status = serde_json::from_value(status).ok();
            world.pods.push(pod);
        }
        Object::NetworkPolicy(policy) => {
            let (namespace, name) = place(&policy.metadata);
            belong(world, Kind::NetworkPolicy, namespace, name);
        }
        Object::ConfigMap(map) => {
            let (namespace, name) = place(&map.metadata);
            belong(world, Kind::ConfigMap, namespace, name);
        }
        Object::Claim(claim) => {
            let (namespace, name) = place(&claim.metadata);
            belong(world, Kind::Claim, namespace.clone(), name.clone());
            let claim = bound((**claim).clone());
            if name == world.clone.target_claim() && namespace == world.clone.target_namespace() {
                world.target_claim = Some(claim);
            } else if name == names::prime_name(&world.clone) {
                world.prime_claim = Some(claim);
            } else if let Some(around) = &mut world.surroundings {
                around.restored_claim = Some(claim);
            }
        }
        Object::Snapshot(_) | Object::Clone(_) => {}
    }
}

/// `claim` with a volume; but what a backend is to fill stays without: how that goes can't be known.
fn bound(mut claim: PersistentVolumeClaim) -> PersistentVolumeClaim {
    let spec = claim.spec.get_or_insert_default();
    if spec.data_source.is_some() {
        claim.metadata.uid = Some(claim.name_any());
        claim.status.get_or_insert_default().phase = Some("Pending".to_owned());
        return claim;
    }
    spec.volume_name.get_or_insert_with(|| "volume".to_owned());
    let capacity = spec.resources.as_ref().and_then(|it| it.requests.clone());
    claim.metadata.uid = Some(claim.name_any());
    let status = claim.status.get_or_insert_default();
    status.phase = Some("Bound".to_owned());
    status.capacity = capacity;
    claim
}
