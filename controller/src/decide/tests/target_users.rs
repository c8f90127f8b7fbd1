//! Pods that want the target before it is complete.

use serde_json::json;

use super::{check_stop, decide_in, of, world};
use crate::api::Phase;
use crate::reason::Reason;
use crate::world::ClaimUser;

#[test]
fn a_claim_that_pods_wait_for_is_not_made_for_agents() {
    let template = json!({"metadata": {"name": "to"}});
    let mut world = world(&json!({"target": {"claimTemplate": template}}));
    let waiting = json!({
        "metadata": {"name": "desk"},
        "spec": {"containers": [],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "to"}}]},
        "status": {"phase": "Pending"},
    });
    world.users.target = vec![ClaimUser::of(&of(waiting)).unwrap()];
    let words = "claim to is used by pods desk; end them first";
    let mut world = check_stop(world, Phase::Pending, Reason::TargetInUse, words);
    assert_eq!(decide_in(&mut world).0, Vec::<String>::new());

    world.users.target.clear();
    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps[0], "apply claim home/to");
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-target");
}
