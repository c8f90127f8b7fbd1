//! A `VolumeClone` that is no clone itself: each claim that refers to it is filled by one made after
//! it.
//!
//! That one belongs to its claim and goes with it. It is a clone like any other: whatever is known of
//! the claim stands in its status.

use std::time::Duration;

use super::status::{Condition, set_condition};
use super::{Decision, Step};
use crate::api::Phase;
use crate::objects::{self, Object};
use crate::reason::Reason;
use crate::world::World;

/// How often claims are looked for of which no watch tells: their clone failed, and was deleted.
const LOOK_EVERY: Duration = Duration::from_secs(60);

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
    Decision {
        status: (status != before).then(|| Box::new(status)),
        steps: fillers
            .map(|filler| Step::Apply(Object::Clone(Box::new(filler))))
            .collect(),
        again: Some(LOOK_EVERY),
        ..Decision::default()
    }
}
