//! Who may run: a clone by agents takes a place, and without one it queues.
//!
//! Places are counted by what is remembered of clones, not read from the cluster; what runs already is let in
//! first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::{Context, Memory};
use crate::api::{Strategy, VolumeClone};
use crate::cache::is_queued;
use crate::cluster::Look;
use crate::decide::{Decision, Step, pinned_nodes};
use crate::observer::Observe;
use crate::world::{Kind, World};

/// How many clones may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In the whole cluster.
    pub overall: usize,
    /// With the target in one namespace.
    pub per_namespace: usize,
    /// With an agent on one node.
    pub per_node: usize,
}

/// How often one that queues looks whether there is room. It is woken when there is: this is for what
/// may have been missed.
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_secs(30);

impl<O: Observe> Context<O> {
    /// Lets in what runs already, before anything else is.
    pub(super) fn remember_running(&self) {
        for clone in self.cluster.clones().state() {
            // Anybody can label pods.
            if self.cluster.agent_pods(&clone).is_empty() {
                continue;
            }
            self.memory(&clone, |memory| {
                memory.is_admitted = true;
                clone.target_namespace().clone_into(&mut memory.namespace);
            });
        }
    }

    /// How long a clone that was told to queue still waits, if nothing has changed for it.
    pub(super) fn still_queues(&self, cached: &VolumeClone) -> Option<Duration> {
        let status = cached.status.as_ref()?;
        let waits = is_queued(cached)
            && status.observed_generation == cached.metadata.generation
            && cached.metadata.deletion_timestamp.is_none()
            && self.room(&self.memories(), cached).is_err();
        let started_at = status.started_at.as_ref();
        let left = match (started_at, cached.spec.deadline_seconds) {
            (Some(started_at), Some(limit)) => {
                let waited = (self.clock)().duration_since(started_at.0).as_secs();
                u64::try_from(limit.saturating_sub(waited)).unwrap_or(0)
            }
            _ => u64::MAX,
        };
        let pause = LOOK_FOR_ROOM_EVERY.min(Duration::from_secs(left));
        (waits && !pause.is_zero()).then_some(pause)
    }

    /// Whether there is room for the clone beside those that run.
    fn room(&self, memories: &HashMap<String, Memory>, clone: &VolumeClone) -> Result<(), String> {
        let Limits {
            overall,
            per_namespace,
            per_node: _,
        } = self.limits;
        let is_other = |uid: &str, memory: &Memory| memory.is_admitted && uid != clone.uid();
        let others = memories
            .iter()
            .filter(|(uid, memory)| is_other(uid, memory));
        let (mut all, mut beside) = (0, 0);
        for (_, memory) in others {
            all += 1;
            beside += usize::from(memory.namespace == clone.target_namespace());
        }
        if all < overall && beside < per_namespace {
            return Ok(());
        }
        // Numbers that change all the time would be written all the time.
        Err(if all < overall {
            format!("{per_namespace} clones run in this namespace, as many as may at once")
        } else {
            format!("{overall} clones run, as many as may at once")
        })
    }

    /// Whether there is room on the nodes where the clone's agents would have to be.
    fn room_on(
        &self,
        nodes: &BTreeSet<String>,
        memories: &HashMap<String, Memory>,
        clone: &VolumeClone,
    ) -> Result<(), String> {
        if nodes.is_empty() {
            return Ok(());
        }
        // By node, the clones that have an agent there, or will have.
        let mut others: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let pods = self.cluster.all_agent_pods();
        for user in pods.iter().filter_map(|pod| pod.user.as_ref()) {
            let (Some(node), Some(uid)) = (&user.node, &user.clone) else {
                continue;
            };
            // Anybody can label pods.
            if memories.get(uid).is_some_and(|memory| memory.is_admitted) {
                others.entry(node).or_default().insert(uid);
            }
        }
        for (uid, memory) in memories.iter().filter(|(_, memory)| memory.is_admitted) {
            for node in &memory.nodes {
                others.entry(node).or_default().insert(uid);
            }
        }
        let most = self.limits.per_node;
        let is_full = |node: &&String| {
            let there = others.get(node.as_str()).into_iter().flatten();
            there.filter(|uid| **uid != clone.uid()).count() >= most
        };
        nodes.iter().find(is_full).map_or(Ok(()), |node| {
            Err(format!(
                "{most} clones run on node {node}, as many as may at once"
            ))
        })
    }

    /// Whether the clone may run beside those that do. One that has a pod was let in before, perhaps
    /// by a predecessor. With a full look it takes its place.
    pub(super) fn admit(&self, world: &World, look: Look) -> Result<(), String> {
        let clone = &world.clone;
        let mut memories = self.memories();
        let nodes = pinned_nodes(world);
        let is_in = memories
            .get(clone.uid())
            .is_some_and(|memory| memory.is_admitted);
        if world.pods.is_empty() && !is_in {
            self.room(&memories, clone)?;
            self.room_on(&nodes, &memories, clone)?;
        }
        if look == Look::Full {
            let memory = memories.entry(clone.uid().to_owned()).or_default();
            memory.is_admitted = true;
            memory.nodes = nodes;
            clone.target_namespace().clone_into(&mut memory.namespace);
        }
        Ok(())
    }

    /// Gives the place back that a clone doesn't take: it waits for something else, or for the time to ask again for
    /// what was refused, or needs no agents.
    pub(super) fn keep_place(&self, world: &World, decision: &Decision) {
        let status = world.clone.status.as_ref();
        let has_begun = status
            .is_some_and(|status| status.progress.is_some() || status.attempts.target.failures > 0);
        // Snapshots are taken, and claims made, for agents that follow; a backend needs no place.
        let decided = decision.status.as_deref().or(status);
        let is_by_agents = decided.is_some_and(|status| {
            status.strategy == Some(Strategy::HostAssisted) && !status.phase.is_finished()
        });
        let makes = |step: &Step| matches!(step, Step::Apply(_));
        let prepares = decision.steps.iter().any(makes)
            || world.belongings_of(Kind::Snapshot).next().is_some();
        let wants = (is_by_agents && prepares) || has_begun;
        self.memory(&world.clone, |memory| {
            let keeps = wants && !memory.waits_to_ask(&decision.steps);
            if !keeps && world.pods.is_empty() {
                self.set_admitted(memory, false);
            }
        });
    }

    pub(super) fn set_admitted(&self, memory: &mut Memory, is_admitted: bool) {
        if memory.is_admitted && !is_admitted {
            self.has_room.store(true, Ordering::Relaxed);
            memory.nodes.clear();
        }
        memory.is_admitted = is_admitted;
    }

    /// Has those looked at for which there is room now, those that wait longest first.
    pub(super) fn wake_queue(&self) {
        if !self.has_room.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(wake) = self.wake.get() else { return };
        let mut queue = self.cluster.clones().state_filter(is_queued);
        queue.sort_by_key(|clone| (clone.creation_timestamp(), clone.uid().to_owned()));
        let places = {
            let memories = self.memories();
            queue.retain(|clone| self.room(&memories, clone).is_ok());
            self.limits
                .overall
                .saturating_sub(count_admitted(&memories))
        };
        for clone in queue.iter().take(places) {
            // With many waiting to be looked at it looks by itself.
            let _full = wake.try_send(ObjectRef::from_obj(&**clone));
        }
    }
}

pub(super) fn count_admitted(memories: &HashMap<String, Memory>) -> usize {
    memories
        .values()
        .filter(|memory| memory.is_admitted)
        .count()
}
