//! The loop: observe, decide, act.
//!
//! One reconcile looks at one `VolumeClone` from scratch, so it doesn't matter why it was called, how
//! often, or what a predecessor had begun. What is kept between two is only what makes them cheaper or
//! better told: the last refusal, credentials to observe with, when all was last looked at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use tokio::time::Instant;

use crate::agent_pod::{Seen, State};
use crate::api::{Phase, VolumeClone};
use crate::claims::waits_for_clone;
use crate::cluster::{Cluster, ClusterError};
use crate::credentials::ObserverCredentials;
use crate::decide::{Decision, Step, decide};
use crate::metrics::{Metrics, Outcome};
use crate::names::{CLONE_ANNOTATION, CLONE_LABEL, End, FINALIZER, prime_name};
use crate::observer::Observe;
use crate::reason::Reason;
use crate::world::{Rejection, Settings, TargetReport, World};

/// How many clones may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In the whole cluster.
    pub overall: usize,
    /// With the target in one namespace.
    pub per_namespace: usize,
}

/// Reconciles at once: each waits for the API server most of its time.
const RECONCILES_MAX: u16 = 16;
/// How long a clone that runs is only looked at by its pods: what else belongs to it rarely changes.
const FULL_LOOK_EVERY: Duration = Duration::from_secs(600);
/// How often one that queues looks whether there is room.
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_secs(1);
/// The pause after a first error; it doubles with each that follows.
const ERROR_PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause after an error or a refusal.
const ERROR_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Tells the time: the system's, or in tests one that passes faster.
pub type Clock = fn() -> Timestamp;

/// What reconciles share.
#[derive(Debug)]
pub struct Context<O> {
    cluster: Cluster,
    observer: O,
    settings: Settings,
    limits: Limits,
    clock: Clock,
    metrics: Arc<Metrics>,
    memories: Mutex<HashMap<String, Memory>>,
}

/// What is remembered of a clone, by its uid. All of it may be forgotten.
#[derive(Debug, Default)]
struct Memory {
    namespace: String,
    is_admitted: bool,
    rejection: Option<Rejection>,
    errors: u32,
    observer: Option<ObserverCredentials>,
    looked_at: Option<Instant>,
}

impl<O: Observe> Context<O> {
    /// A context that remembers nothing.
    #[must_use]
    pub fn new(cluster: Cluster, observer: O, settings: Settings, limits: Limits) -> Self {
        Self {
            cluster,
            observer,
            settings,
            limits,
            clock: Timestamp::now,
            metrics: Arc::default(),
            memories: Mutex::default(),
        }
    }

    /// The same context with another clock.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The same context, telling its metrics there.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// Reconciles everything until `stop` is done and what is under way has ended.
    pub async fn run(self: Arc<Self>, stop: impl Future<Output = ()> + Send + Sync + 'static) {
        let client = self.cluster.client();
        let ours = watcher::Config::default().labels(CLONE_LABEL);
        let clones: Api<VolumeClone> = Api::all(client.clone());
        let pods: Api<Pod> = Api::all(client.clone());
        let claims: Api<PersistentVolumeClaim> = Api::all(client);
        let controller = Controller::new(clones, watcher::Config::default())
            .with_config(Config::default().concurrency(RECONCILES_MAX))
            .watches(pods, ours, |pod| clone_of(&pod))
            .watches(claims, watcher::Config::default(), |claim| {
                clone_of(&claim).or_else(|| template_of(&claim))
            })
            .graceful_shutdown_on(stop);
        self.metrics.lead(controller.store());
        let reconciled = controller.run(
            |clone, context| async move { context.reconcile_counted(&clone).await },
            |clone, error, context| context.pause_after(&clone, error),
            self,
        );
        reconciled
            .for_each(|ended| async {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a reconcile ended early");
                }
            })
            .await;
    }

    async fn reconcile_counted(&self, cached: &VolumeClone) -> Result<Action, ClusterError> {
        if self.still_queues(cached) {
            return Ok(Action::requeue(LOOK_FOR_ROOM_EVERY));
        }
        let began = Instant::now();
        let ended = self.reconcile(cached).await;
        let outcome = if ended.is_ok() {
            Outcome::Done
        } else {
            Outcome::Failed
        };
        self.metrics.reconciled(outcome, began.elapsed());
        let running = self.memories();
        let running = running.values().filter(|memory| memory.is_admitted);
        self.metrics.running(running.count());
        ended
    }

    /// Looks at one clone and does what is next.
    ///
    /// # Errors
    /// When a call fails; the next look goes on from there.
    pub async fn reconcile(&self, cached: &VolumeClone) -> Result<Action, ClusterError> {
        let namespace = cached.namespace().unwrap_or_default();
        let name = cached.name_any();
        let Some(clone) = self.cluster.clone_now(&namespace, &name).await? else {
            self.forget(cached.uid());
            return Ok(Action::await_change());
        };
        // Nothing was made for one without a finalizer, so there is nothing to look at.
        let is_kept = clone.finalizers().iter().any(|name| name == FINALIZER);
        let world = if clone.spec.target.referring_claims {
            let referring_claims = self.cluster.referring(&clone).await?;
            World {
                referring_claims,
                ..self.bare(clone)
            }
        } else if is_kept {
            self.observe(clone).await?
        } else {
            self.bare(clone)
        };
        let clone = world.clone.clone();
        let mut decision = decide(&world);
        if decision.needs_surroundings {
            let world = Box::pin(self.look_around(world)).await?;
            decision = decide(&world);
        }
        self.act(&clone, &decision).await
    }

    /// A world of which nothing but the object is known.
    fn bare(&self, clone: VolumeClone) -> World {
        World {
            now: (self.clock)(),
            settings: self.settings.clone(),
            pods: Vec::new(),
            belongings: Vec::new(),
            target_claim: None,
            prime_claim: None,
            prime_volume: None,
            referring_claims: Vec::new(),
            surroundings: None,
            report: None,
            rejection: self.memory(&clone, |memory| memory.rejection.clone()),
            admission: Ok(()),
            clone,
        }
    }

    /// The world without its surroundings. Of a clone that runs only the pods are looked at.
    async fn observe(&self, clone: VolumeClone) -> Result<World, ClusterError> {
        let pods = self.cluster.agent_pods(&clone).await?;
        let mut world = World {
            pods,
            ..self.bare(clone)
        };
        // One that has pods was let in, perhaps by a predecessor.
        let phase = world.clone.status.as_ref().map(|status| status.phase);
        let is_over = phase.is_some_and(|phase| phase.is_finished() || phase == Phase::Suspended);
        let is_admitted = !world.pods.is_empty() && !is_over;
        let namespace = world.clone.target_namespace();
        let is_recent = self.memory(&world.clone, |memory| {
            if is_admitted {
                namespace.clone_into(&mut memory.namespace);
            }
            memory.is_admitted = !is_over && (is_admitted || memory.is_admitted);
            let looked_at = memory.looked_at;
            looked_at.is_some_and(|at| at.elapsed() < FULL_LOOK_EVERY)
        });
        if !is_running(&world) || !is_recent {
            self.look_at_belongings(&mut world).await?;
        }
        world.report = self.report(&world).await?;
        Ok(world)
    }

    async fn look_at_belongings(&self, world: &mut World) -> Result<(), ClusterError> {
        world.belongings = self.cluster.belongings(&world.clone).await?;
        let (namespace, name) = (world.clone.target_namespace(), world.clone.target_claim());
        world.target_claim = self.cluster.claim(namespace, name).await?;
        let prime = world
            .clone
            .status
            .as_ref()
            .and_then(|status| status.prime.as_ref());
        if let Some(prime) = prime {
            let name = prime_name(&world.clone);
            let claim = self.cluster.claim(&prime.namespace, &name).await?;
            let bound = claim
                .as_ref()
                .and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
            if let Some(volume) = prime.volume.clone().or(bound) {
                world.prime_volume = self.cluster.volume(&volume).await?;
            }
            world.prime_claim = claim;
        }
        self.memory(&world.clone, |memory| {
            memory.looked_at = Some(Instant::now())
        });
        Ok(())
    }

    async fn look_around(&self, mut world: World) -> Result<World, ClusterError> {
        self.look_at_belongings(&mut world).await?;
        world.surroundings = Some(self.cluster.surroundings(&world.clone).await?);
        world.admission = self.admit(&world);
        Ok(world)
    }

    /// Whether the clone was told to queue, and nothing has changed for it. It is asked often, so it
    /// takes no call.
    fn still_queues(&self, cached: &VolumeClone) -> bool {
        let Some(status) = &cached.status else {
            return false;
        };
        let waited = status
            .started_at
            .as_ref()
            .map(|at| (self.clock)().duration_since(at.0));
        let limit = cached.spec.deadline_seconds;
        let is_late =
            matches!((waited, limit), (Some(waited), Some(limit)) if waited.as_secs() >= limit);
        let mut conditions = status.conditions.iter();
        conditions.any(|condition| condition.reason == Reason::Queued.label())
            && status.observed_generation == cached.metadata.generation
            && cached.metadata.deletion_timestamp.is_none()
            && !is_late
            && self.room(&self.memories(), cached).is_err()
    }

    /// Whether there is room for the clone beside those that run.
    fn room(&self, memories: &HashMap<String, Memory>, clone: &VolumeClone) -> Result<(), String> {
        let Limits {
            overall,
            per_namespace,
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

    /// Whether the clone may run beside those that do. One that has a pod was let in before, perhaps
    /// by a predecessor.
    fn admit(&self, world: &World) -> Result<(), String> {
        let clone = &world.clone;
        let mut memories = self.memories();
        if world.pods.is_empty() {
            self.room(&memories, clone)?;
        }
        let memory = memories.entry(clone.uid().to_owned()).or_default();
        memory.is_admitted = true;
        memory.namespace = clone.target_namespace().to_owned();
        Ok(())
    }

    /// What the target says of its progress, if it can be asked.
    async fn report(&self, world: &World) -> Result<Option<TargetReport>, ClusterError> {
        let Some(State::Running {
            address: Some(address),
            is_ready: true,
        }) = world.pod(End::Target).map(|pod| Seen::of(pod).state)
        else {
            return Ok(None);
        };
        if world.pod(End::Source).is_none() || world.clone.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let remembered = self.memory(&world.clone, |memory| memory.observer.clone());
        let credentials = match remembered {
            Some(credentials) => Some(credentials),
            None => self.cluster.observer(&world.clone).await?,
        };
        let Some(credentials) = credentials else {
            return Ok(None);
        };
        let asked = self.observer.progress(address, &credentials).await;
        // Those that were refused may have been renewed.
        let kept = asked.is_ok().then_some(credentials);
        self.memory(&world.clone, |memory| memory.observer = kept);
        // Progress that can't be had holds nothing up: the pods tell the end.
        if let Err(error) = &asked {
            let clone = world.clone.uid();
            tracing::debug!(clone, %error, "the target could not be asked for its progress");
        }
        Ok(asked.ok())
    }

    /// Writes the status, then takes the steps, and says when to look again.
    async fn act(&self, clone: &VolumeClone, decision: &Decision) -> Result<Action, ClusterError> {
        if let Some(status) = &decision.status {
            self.cluster.write_status(clone, status).await?;
            let was_over = clone
                .status
                .as_ref()
                .is_some_and(|it| it.phase.is_finished());
            if status.phase.is_finished() && !was_over {
                self.metrics.ended(status);
            }
        }
        for note in &decision.notes {
            self.cluster.publish(clone, note).await;
        }
        for step in &decision.steps {
            if let Err(error) = self.cluster.take(clone, step).await {
                return self.refused(clone, step, error);
            }
        }
        if decision.steps.contains(&Step::RemoveFinalizer) {
            self.forget(clone.uid());
            return Ok(Action::await_change());
        }
        let was_refused = self.memory(clone, |memory| {
            memory.errors = 0;
            memory.rejection.take().is_some()
        });
        if was_refused || (decision.status.is_some() && decision.again == Some(Duration::ZERO)) {
            return Ok(Action::requeue(Duration::ZERO));
        }
        Ok(decision
            .again
            .map_or_else(Action::await_change, Action::requeue))
    }

    /// What the API server refuses is told in the status, and tried again after a while.
    fn refused(
        &self,
        clone: &VolumeClone,
        step: &Step,
        error: ClusterError,
    ) -> Result<Action, ClusterError> {
        let (Some(message), Step::Apply(object)) = (error.refusal(), step) else {
            return Err(error);
        };
        let rejection = Rejection {
            what: object.describe(),
            message: message.to_owned(),
        };
        Ok(Action::requeue(self.memory(clone, |memory| {
            memory.is_admitted = false;
            let is_new = memory.rejection.as_ref() != Some(&rejection);
            memory.rejection = Some(rejection);
            // It is told at once, and tried again later.
            memory.errors = if is_new {
                0
            } else {
                memory.errors.saturating_add(1)
            };
            if is_new {
                Duration::ZERO
            } else {
                pause(memory.errors)
            }
        })))
    }

    fn pause_after(&self, clone: &VolumeClone, error: &ClusterError) -> Action {
        tracing::warn!(clone = clone.uid(), %error, "will be tried again");
        Action::requeue(self.memory(clone, |memory| {
            memory.errors = memory.errors.saturating_add(1);
            pause(memory.errors)
        }))
    }

    fn memories(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what is remembered of a clone, or changes it.
    fn memory<T>(&self, clone: &VolumeClone, look: impl FnOnce(&mut Memory) -> T) -> T {
        look(self.memories().entry(clone.uid().to_owned()).or_default())
    }

    fn forget(&self, uid: &str) {
        self.memories().remove(uid);
    }
}

/// The pause after so many errors in a row.
fn pause(errors: u32) -> Duration {
    let doublings = errors.saturating_sub(1).min(16);
    let pause = ERROR_PAUSE_MIN.saturating_mul(2u32.saturating_pow(doublings));
    pause.min(ERROR_PAUSE_MAX)
}

/// Whether both agents are at work and nothing else is asked for.
fn is_running(world: &World) -> bool {
    let status = world.clone.status.as_ref();
    // One that is proven has a volume to hand over, else it is finished.
    let status = status.filter(|status| status.receipt.is_none());
    let phase = status.map(|status| status.phase);
    let is_staying = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    matches!(phase, Some(Phase::Cloning | Phase::Verifying))
        && End::ALL
            .into_iter()
            .all(|end| world.pod(end).is_some_and(is_staying))
        && !world.clone.spec.suspend
        && world.clone.metadata.deletion_timestamp.is_none()
}

/// The clone that an object was made for, wherever it is.
fn clone_of(object: &impl Resource) -> Option<ObjectRef<VolumeClone>> {
    let shown = object.annotations().get(CLONE_ANNOTATION)?;
    let (namespace, name) = shown.split_once('/')?;
    Some(ObjectRef::new(name).within(namespace))
}

/// The object that a claim waits to be filled after.
fn template_of(claim: &PersistentVolumeClaim) -> Option<ObjectRef<VolumeClone>> {
    let name = waits_for_clone(claim)?;
    Some(ObjectRef::new(name).within(&claim.namespace()?))
}
