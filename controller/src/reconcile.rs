//! The loop: observe, decide, act.
//!
//! One reconcile looks at one `VolumeClone` from scratch, so it doesn't matter why it was called, how
//! often, or what a predecessor had begun. What is kept between two is only what makes them cheaper or
//! better told: the last refusal, credentials to observe with, when all was last looked at.
//!
//! It glances first, at what watches have brought, and asks the API server for nothing. Only where
//! there seems to be something to do does it look properly: the object and what a decision must not
//! be mistaken in are read, and it is decided again. A watch may be behind, so after a step the next
//! look waits until what was done can be seen, and before an object goes all is listed.

mod places;
mod refusals;
mod strays;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::{Action, Config, applier};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::places::Limits;
use self::places::count_admitted;
use self::refusals::Refused;
use crate::agent_pod::{Seen, State};
use crate::api::{Phase, Strategy, VolumeClone};
use crate::cache::Wake;
use crate::cluster::{Cluster, ClusterError, Expected, Look};
use crate::credentials::ObserverCredentials;
use crate::decide::{Decision, Step, decide};
use crate::metrics::{Metrics, Outcome};
use crate::names::{End, FINALIZER, prime_name};
use crate::objects::bandwidth_limit;
use crate::observer::{Observe, ObserveError};
use crate::world::{Settings, Silence, TargetReport, Users, World};

/// Reconciles at once: each waits for the API server most of its time.
const RECONCILES_MAX: u16 = 32;
/// Clones that wait to be looked at, before watches wait too.
const WAKES_MAX: usize = 1024;
/// How long a clone that runs is only looked at by its pods: what else belongs to it rarely changes.
const FULL_LOOK_EVERY: Duration = Duration::from_secs(600);
/// How long what was done may take to be seen: then a watch has been lost, or somebody undid it.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// How long a clone has to look as if it failed before it has: there is no way back, and a watch may
/// not have told yet of what was mended just now.
const FAILS_AFTER: Duration = Duration::from_secs(2);
/// The pause after a first error; it doubles with each that follows.
const ERROR_PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause after an error or a refusal.
const ERROR_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The pauses between questions to a target that does not answer begin like those after so many errors: with
/// seconds, as often as it is asked anyway.
const ASKED_IN_VAIN: u32 = 3;

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
    /// Has a clone looked at; known once it runs.
    wake: OnceLock<Wake>,
    /// Whether a clone has made room since those that queue were woken.
    has_room: AtomicBool,
}

/// What is remembered of a clone, by its uid. All of it may be forgotten.
#[derive(Debug, Default)]
struct Memory {
    namespace: String,
    is_admitted: bool,
    /// The nodes on which its agents have to be.
    nodes: BTreeSet<String>,
    /// The steps that were refused.
    refused: BTreeMap<String, Refused>,
    errors: u32,
    observer: Option<ObserverCredentials>,
    /// The target pod's uid and the bandwidth limit that it refused.
    refused_limit: Option<(Option<String>, u64)>,
    silence: Option<Unheard>,
    looked_at: Option<Instant>,
    /// Whether it has ended, and nothing of it was left.
    is_clean: bool,
    /// What was done and was not seen yet, and when it was.
    expected: Vec<Expected>,
    acted_at: Option<Instant>,
    /// Since when it looks as if the clone failed.
    fails_since: Option<Instant>,
}

/// A target that could not be asked for its progress.
#[derive(Debug)]
struct Unheard {
    since: Instant,
    why: String,
    /// How often it was asked in vain.
    asked: u32,
    /// When it is asked again: ever more rarely, since who asks waits for each.
    ask_at: Instant,
}

impl Unheard {
    fn note(silence: &mut Option<Self>, error: &ObserveError) {
        let now = Instant::now();
        let silence = silence.get_or_insert_with(|| Self {
            since: now,
            why: chain(error),
            asked: 0,
            ask_at: now,
        });
        silence.asked = silence.asked.saturating_add(1);
        silence.ask_at = now + pause(silence.asked.saturating_add(ASKED_IN_VAIN));
        tracing::debug!(%error, asked = silence.asked, "a target could not be asked for its progress");
    }

    fn told(&self) -> Silence {
        Silence {
            lasts: self.since.elapsed(),
            why: self.why.clone(),
        }
    }
}

/// What a glance showed.
enum Glance {
    /// There is nothing to do.
    Idle(Action),
    /// There may be. What the target said is not asked for again.
    Busy(Option<TargetReport>),
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
            wake: OnceLock::new(),
            has_room: AtomicBool::new(false),
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
        let (wake, mut woken) = mpsc::channel(WAKES_MAX);
        self.metrics.begin();
        let stop = stop.boxed().shared();
        // Dropped, they end.
        let _watches = self.cluster.watch(&wake);
        tokio::select! {
            () = self.cluster.until_known() => (),
            // Whoever is woken before all is known is looked at then, as all are. With nobody to take them
            // these would fill the channel, and hold up the watches that are waited for.
            () = async { while woken.recv().await.is_some() {} } => return,
            () = stop.clone() => return,
        }
        self.remember_running();
        let clones = self.cluster.clones();
        let all = clones.state();
        let all = all.iter().map(|clone| Ok(ObjectRef::from_obj(&**clone)));
        let all = stream::iter(all.collect::<Vec<_>>());
        self.metrics.lead(clones.clone());
        // It runs once: another time nothing would be watched.
        let _again = self.wake.set(wake);
        let woken = stream::unfold(woken, async |mut woken| {
            woken
                .recv()
                .await
                .map(|clone| (Ok::<_, NeverFails>(clone), woken))
        });
        let teller = Arc::clone(&self);
        let reconciled = applier(
            |clone, context: Arc<Self>| {
                async move { context.reconcile_counted(&clone).await }.boxed()
            },
            |clone, error, context| context.pause_after(&clone, error),
            self,
            clones,
            all.chain(woken).take_until(stop),
            Config::default().concurrency(RECONCILES_MAX),
        );
        let reconciled = reconciled.for_each(|ended| async {
            if let Err(error) = ended {
                tracing::debug!(%error, "a reconcile ended early");
            }
        });
        tokio::select! {
            () = reconciled => (),
            never = teller.tell_strays() => match never {},
        }
    }

    async fn reconcile_counted(&self, cached: &VolumeClone) -> Result<Action, ClusterError> {
        for uid in self.cluster.take_gone() {
            self.forget(&uid);
        }
        if let Some(pause) = self
            .still_queues(cached)
            .or_else(|| self.still_unseen(cached))
        {
            return Ok(Action::requeue(pause));
        }
        let began = Instant::now();
        let ended = self.reconcile(cached).await;
        let outcome = ended
            .as_ref()
            .map_or(Outcome::Failed, |(_, outcome)| *outcome);
        self.metrics.reconciled(outcome, began.elapsed());
        self.metrics.running(count_admitted(&self.memories()));
        self.wake_queue();
        ended.map(|(action, _)| action)
    }

    /// Looks at one clone and does what is next. When a call fails, the next look goes on from there.
    async fn reconcile(&self, cached: &VolumeClone) -> Result<(Action, Outcome), ClusterError> {
        let report = match Box::pin(self.glance(cached)).await? {
            Glance::Idle(action) => return Ok((action, Outcome::Done)),
            Glance::Busy(report) => report,
        };
        let namespace = cached.namespace().unwrap_or_default();
        let name = cached.name_any();
        let Some(clone) = self.cluster.clone_now(&namespace, &name).await? else {
            self.forget(cached.uid());
            return Ok((Action::await_change(), Outcome::Done));
        };
        if clone.uid() != cached.uid() {
            // Another by the same name; its own event follows.
            self.forget(cached.uid());
            return Ok((Action::requeue(SEEN_WITHIN), Outcome::Done));
        }
        let mut world = self.observe(clone, Look::Full, report).await?;
        let mut decision = decide(&world);
        if decision.needs_surroundings {
            world = Box::pin(self.look_around(world, Look::Full)).await?;
            decision = decide(&world);
            self.keep_place(&world, &decision);
        }
        let clone = &world.clone;
        if let Some(pause) = self.may_still_mend(clone, &decision) {
            return Ok((Action::requeue(pause), Outcome::Done));
        }
        let is_over = clone
            .status
            .as_ref()
            .is_some_and(|it| it.phase.is_finished());
        let is_clean = is_over && world.pods.is_empty() && decision.steps.is_empty();
        self.memory(clone, |memory| memory.is_clean = is_clean);
        self.act(clone, &decision).await
    }

    /// Looks without asking the API server whether there is anything to do.
    async fn glance(&self, cached: &VolumeClone) -> Result<Glance, ClusterError> {
        let is_kept = cached.finalizers().iter().any(|name| name == FINALIZER);
        let is_template = cached.spec.target.referring_claims;
        let status = cached.status.as_ref();
        let is_over = status.is_some_and(|status| status.phase.is_finished());
        let is_known = is_template
            || self.memory(cached, |memory| {
                if is_over {
                    memory.is_clean
                } else {
                    memory.is_recent()
                }
            });
        if cached.metadata.deletion_timestamp.is_some() || !(is_kept || is_template) || !is_known {
            return Ok(Glance::Busy(None));
        }
        let mut world = self.observe(cached.clone(), Look::Glance, None).await?;
        let mut decision = decide(&world);
        if decision.needs_surroundings {
            world = Box::pin(self.look_around(world, Look::Glance)).await?;
            decision = decide(&world);
        }
        Ok(if decision.is_idle() {
            self.memory(cached, Memory::rest);
            Glance::Idle(after(&decision))
        } else {
            Glance::Busy(world.report)
        })
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
            filled_volume: None,
            referring_claims: Vec::new(),
            users: Users::default(),
            surroundings: None,
            report: None,
            silence: None,
            rejections: self.memory(&clone, |memory| memory.rejections()),
            admission: Ok(()),
            clone,
        }
    }

    /// The world without its surroundings. Of a clone that runs only the pods are looked at.
    async fn observe(
        &self,
        clone: VolumeClone,
        look: Look,
        report: Option<TargetReport>,
    ) -> Result<World, ClusterError> {
        if clone.spec.target.referring_claims {
            return Ok(World {
                referring_claims: self.cluster.referring(&clone),
                ..self.bare(clone)
            });
        }
        // Nothing was made for one without a finalizer, so there is nothing to look at.
        if !clone.finalizers().iter().any(|name| name == FINALIZER) {
            return Ok(self.bare(clone));
        }
        let pods = if clone.metadata.deletion_timestamp.is_some() {
            // What is not seen now is never looked for again.
            self.cluster.agent_pods_now(&clone).await?
        } else {
            self.cluster.agent_pods(&clone)
        };
        let mut world = World {
            pods,
            ..self.bare(clone)
        };
        // While bytes travel too: pods that come then are not to go unseen.
        if !world.pods.is_empty() {
            world.users = self.cluster.users(&world.clone);
        }
        // One that has pods was let in, perhaps by a predecessor.
        let phase = world.clone.status.as_ref().map(|status| status.phase);
        let is_over = phase.is_some_and(|phase| phase.is_finished() || phase == Phase::Suspended);
        // Of one that has ended some may still be at work.
        let is_at_work = world.pods.iter().any(is_at_work);
        let is_admitted = if is_over {
            is_at_work
        } else {
            !world.pods.is_empty()
        };
        let namespace = world.clone.target_namespace();
        let is_recent = self.memory(&world.clone, |memory| {
            if is_admitted {
                namespace.clone_into(&mut memory.namespace);
            }
            let stays = is_admitted || (memory.is_admitted && !is_over);
            self.set_admitted(memory, stays);
            memory.is_recent()
        });
        if !is_running(&world) || !is_recent {
            self.look_at_belongings(&mut world, look).await?;
        }
        world.report = match report {
            Some(report) => Some(report),
            None => self.report(&world).await?,
        };
        world.silence = self.memory(&world.clone, |memory| {
            memory.silence.as_ref().map(Unheard::told)
        });
        Ok(world)
    }

    async fn look_at_belongings(&self, world: &mut World, look: Look) -> Result<(), ClusterError> {
        let clone = &world.clone;
        world.belongings = if clone.metadata.deletion_timestamp.is_some() {
            self.cluster.belongings_now(clone).await?
        } else {
            self.cluster.belongings(clone)
        };
        world.target_claim = self
            .cluster
            .claim(clone.target_namespace(), clone.target_claim());
        let prime = clone
            .status
            .as_ref()
            .and_then(|status| status.prime.as_ref());
        world.prime_claim =
            prime.and_then(|prime| self.cluster.claim(&prime.namespace, &prime_name(clone)));
        if look == Look::Glance {
            return Ok(());
        }
        let status = clone.status.as_ref();
        let is_by_agents =
            status.is_some_and(|status| status.strategy == Some(Strategy::HostAssisted));
        if is_by_agents && clone.metadata.deletion_timestamp.is_none() {
            let secrets = self.cluster.secret_belongings(clone).await?;
            world.belongings.extend(secrets);
        }
        let filled = match prime {
            Some(_) => world.prime_claim.as_ref(),
            // Of a volume that agents fill it is asked whether it was made for the clone, before they do.
            None => world.target_claim.as_ref().filter(|_| {
                let is_ours = clone.spec.target.claim_template.is_some();
                !is_by_agents || (is_ours && world.pod(End::Target).is_none())
            }),
        };
        let bound = filled.and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
        let volume = prime.and_then(|prime| prime.volume.clone()).or(bound);
        if let Some(volume) = &volume {
            world.filled_volume = self.cluster.volume(volume).await?;
        }
        let goes_on = status.is_some_and(|status| status.filled_uid.is_some());
        let is_going = clone.metadata.deletion_timestamp.is_some();
        if is_going || volume.is_some() || (goes_on && world.pod(End::Target).is_none()) {
            // To a claim that was replaced meanwhile a volume would be lost, and a checkpoint would lie; and none is
            // deleted but as it is.
            world.target_claim = self
                .cluster
                .claim_now(clone.target_namespace(), clone.target_claim())
                .await?;
        }
        self.memory(clone, |memory| memory.looked_at = Some(Instant::now()));
        Ok(())
    }

    async fn look_around(&self, mut world: World, look: Look) -> Result<World, ClusterError> {
        // Of others they were looked at before.
        if is_running(&world) {
            self.look_at_belongings(&mut world, look).await?;
        }
        world.users = self.cluster.users(&world.clone);
        world.surroundings = Some(self.cluster.surroundings(&world.clone, look).await?);
        world.admission = self.admit(&world, look);
        Ok(world)
    }

    /// How long to wait before a failure is believed.
    fn may_still_mend(&self, clone: &VolumeClone, decision: &Decision) -> Option<Duration> {
        let status = decision.status.as_ref();
        let fails = status.is_some_and(|status| status.phase == Phase::Failed);
        self.memory(clone, |memory| {
            if !fails {
                memory.fails_since = None;
                return None;
            }
            let since = memory.fails_since.get_or_insert_with(Instant::now);
            let left = FAILS_AFTER.checked_sub(since.elapsed());
            left.filter(|left| !left.is_zero())
        })
    }

    /// How long to wait for what was done last to be seen: else it would be done again.
    fn still_unseen(&self, cached: &VolumeClone) -> Option<Duration> {
        let is_going = cached.metadata.deletion_timestamp.is_some();
        self.memory(cached, |memory| {
            let left = memory
                .acted_at
                .and_then(|at| SEEN_WITHIN.checked_sub(at.elapsed()))
                .filter(|left| !left.is_zero() && !is_going);
            if left.is_none() {
                memory.expected.clear();
            }
            memory
                .expected
                .retain(|it| !self.cluster.has_come_about(it));
            left.filter(|_| !memory.expected.is_empty())
        })
    }

    /// What the target says of its progress, if it can be asked.
    async fn report(&self, world: &World) -> Result<Option<TargetReport>, ClusterError> {
        let Some(State::Running {
            address: Some(address),
            is_ready: true,
        }) = world.pod(End::Target).map(|pod| Seen::of(pod).state)
        else {
            self.memory(&world.clone, |memory| memory.silence = None);
            return Ok(None);
        };
        if world.pod(End::Source).is_none() || world.clone.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let (remembered, is_late) = self.memory(&world.clone, |memory| {
            let silence = memory.silence.as_ref();
            let is_late = silence.is_none_or(|silence| Instant::now() >= silence.ask_at);
            (memory.observer.clone(), is_late)
        });
        if !is_late {
            return Ok(None);
        }
        let credentials = match remembered {
            Some(credentials) => Some(credentials),
            None => self.cluster.observer(&world.clone).await?,
        };
        let Some(credentials) = credentials else {
            return Ok(None);
        };
        let asked = self.observer.progress(address, &credentials).await;
        if let Ok(report) = &asked {
            let known = report.asked_bandwidth_limit;
            self.tell_limit(world, address, &credentials, known).await;
        }
        // Those that were refused may have been renewed.
        let kept = asked.is_ok().then_some(credentials);
        self.memory(&world.clone, |memory| {
            memory.observer = kept;
            // Progress that can't be had holds nothing up: the pods tell the end.
            match &asked {
                Ok(_) => memory.silence = None,
                Err(error) => Unheard::note(&mut memory.silence, error),
            }
        });
        Ok(asked.ok())
    }

    /// Has the target know the bandwidth limit, where it knows another or none: of a new one nobody asked
    /// anything yet, and what its source was started with may be outdated.
    async fn tell_limit(
        &self,
        world: &World,
        address: IpAddr,
        credentials: &ObserverCredentials,
        known: Option<u64>,
    ) {
        let clone = &world.clone;
        let limit = bandwidth_limit(&clone.spec.transport).unwrap_or(0);
        let asks = (world.pod(End::Target).and_then(ResourceExt::uid), limit);
        let is_hopeless = self.memory(clone, |memory| memory.refused_limit.as_ref() == Some(&asks));
        if known == Some(limit) || is_hopeless {
            return;
        }
        let Err(error) = self.observer.limit(address, credentials, limit).await else {
            return;
        };
        tracing::warn!(
            clone = clone.name_any(),
            namespace = clone.namespace(),
            bytes_per_second = limit,
            "the target agent does not take the bandwidth limit: {error}"
        );
        // An earlier version doesn't know the question.
        let is_refused = matches!(error, ObserveError::Status { .. });
        self.memory(clone, |memory| {
            memory.refused_limit = is_refused.then_some(asks);
        });
    }

    /// Writes the status, then takes the steps, and says when to look again.
    async fn act(
        &self,
        clone: &VolumeClone,
        decision: &Decision,
    ) -> Result<(Action, Outcome), ClusterError> {
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
        let was_refused = self.memory(clone, |memory| {
            memory.forget_refusals(&decision.steps);
            memory.was_refused(&decision.steps)
        });
        let mut refused: Option<Duration> = None;
        let mut outcome = Outcome::Done;
        let mut steps = decision.steps.iter();
        while let Some(step) = steps.next() {
            let Some(pause) = self.take(clone, step).await? else {
                continue;
            };
            refused = Some(refused.map_or(pause, |soonest| soonest.min(pause)));
            if !step.makes() {
                outcome = Outcome::Refused;
            }
            if step.is_needed_by(steps.as_slice()) {
                break;
            }
        }
        if let Some(pause) = refused {
            return Ok((Action::requeue(pause), outcome));
        }
        if decision.steps.contains(&Step::RemoveFinalizer) {
            self.forget(clone.uid());
            return Ok((Action::await_change(), outcome));
        }
        self.memory(clone, Memory::rest);
        if was_refused || (decision.status.is_some() && decision.again == Some(Duration::ZERO)) {
            return Ok((Action::requeue(Duration::ZERO), outcome));
        }
        Ok((after(decision), outcome))
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
        if let Some(mut memory) = self.memories().remove(uid) {
            self.set_admitted(&mut memory, false);
        }
    }
}

impl Memory {
    /// All went well.
    fn rest(&mut self) {
        self.errors = 0;
        self.forget_refusals(&[]);
        self.fails_since = None;
    }

    /// Whether all that belongs to the clone was looked at not long ago.
    fn is_recent(&self) -> bool {
        self.looked_at
            .is_some_and(|at| at.elapsed() < FULL_LOOK_EVERY)
    }
}

/// The channel of clones to look at has no errors.
#[derive(Debug, thiserror::Error)]
enum NeverFails {}

/// When to look again after a decision.
fn after(decision: &Decision) -> Action {
    decision
        .again
        .map_or_else(Action::await_change, Action::requeue)
}

/// An error with all that led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let words: Vec<_> = causes.map(ToString::to_string).collect();
    words.join(": ")
}

/// The pause after so many errors in a row.
fn pause(errors: u32) -> Duration {
    let doublings = errors.saturating_sub(1).min(16);
    let pause = ERROR_PAUSE_MIN.saturating_mul(2u32.saturating_pow(doublings));
    pause.min(ERROR_PAUSE_MAX)
}

/// Whether the pod has not ended.
fn is_at_work(pod: &Pod) -> bool {
    !matches!(Seen::of(pod).state, State::Succeeded | State::Failed { .. })
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
