//! A `VolumeClone` that is no clone itself: each claim that refers to it is filled by one made after
//! it.
//!
//! That one belongs to its claim and goes with it. It is a clone like any other: whatever is known of
//! the claim stands in its status.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;

use super::status::{Condition, is_told, rejection, set_condition};
use super::{Decision, Note, Step};
use crate::api::{Phase, VolumeClone};
use crate::objects::{self, Object};
use crate::reason::Reason;
use crate::world::World;

/// How often claims are looked for of which no watch tells: their clone failed, and was deleted.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The claim that a clone was made for, since it refers to a `VolumeClone`.
pub(crate) fn filled_claim(clone: &VolumeClone) -> Option<&OwnerReference> {
    let mut owners = clone.owner_references().iter();
    owners.find(|owner| owner.kind == "PersistentVolumeClaim")
}

/// Has each claim filled that refers to the object.
pub(super) fn serve(world: &World) -> Decision {
    let clone = &world.clone;
    if clone.metadata.deletion_timestamp.is_some() {
        return Decision::default();
    }
    let before = clone.status.clone().unwrap_or_default();
    let mut status = before.clone();
    status.phase = Phase::Template;
    status.observed_generation = clone.metadata.generation;
    let words = (Reason::Template, Reason::Template.sentence());
    set_condition(
        &mut status.conditions,
        Condition::Accepted,
        true,
        words,
        world,
    );
    let claims = world.referring_claims.iter();
    let fillers = claims.filter_map(|claim| objects::filler(clone, claim));
    let steps: Vec<_> = fillers
        .map(|filler| Step::Apply(Object::Clone(Box::new(filler))))
        .collect();
    let mut notes = Vec::new();
    match rejection(world, &steps) {
        Some((reason, words)) => {
            if !is_told(&before, reason) {
                notes.push(Note {
                    is_warning: true,
                    reason,
                    message: words.clone(),
                });
            }
            let told = (reason, words.as_str());
            set_condition(
                &mut status.conditions,
                Condition::Progressing,
                false,
                told,
                world,
            );
        }
        // Nothing is under way by itself.
        None => status
            .conditions
            .retain(|condition| condition.type_ != Condition::Progressing.label()),
    }
    Decision {
        status: (status != before).then(|| Box::new(status)),
        steps,
        notes,
        again: Some(LOOK_EVERY),
        ..Decision::default()
    }
}
