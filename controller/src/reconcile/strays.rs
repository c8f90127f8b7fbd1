//! Claims that refer to a `VolumeClone` which will never fill them. No clone is there to tell them, so they
//! are looked for.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use kube::{Resource, ResourceExt};

use super::Context;
use crate::cluster::Stray;
use crate::decide::Note;
use crate::observer::Observe;

/// How often they are looked for. Who is found twice is told: what a claim refers to may come after it.
const LOOK_EVERY: Duration = Duration::from_secs(30);

impl<O: Observe> Context<O> {
    /// Tells each such claim so, once, and again when what is wrong has changed.
    #[expect(clippy::infinite_loop, reason = "it is said by the type")]
    pub(super) async fn tell_strays(&self) -> Infallible {
        // By the claim's uid, what was found the last time, and whether it was told.
        let mut known: HashMap<String, (Stray, bool)> = HashMap::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let mut found = HashMap::new();
            for (claim, stray) in self.cluster.strays() {
                let uid = claim.uid().unwrap_or_default();
                let before = known.get(&uid).filter(|(before, _)| *before == stray);
                if before.is_some_and(|(_, is_told)| !is_told) {
                    let note = Note {
                        is_warning: true,
                        reason: stray.reason(),
                        message: stray.to_string(),
                    };
                    self.cluster.tell(&claim.object_ref(&()), &note).await;
                }
                found.insert(uid, (stray, before.is_some()));
            }
            known = found;
        }
    }
}
