//! An API server within the process: objects with versions, conflicts, finalizers, graceful deletion,
//! selectors, metadata-only lists, watches with bookmarks that are cut and outdated, and calls that fail
//! as planned.
//!
//! What a client makes or replaces has to fit the published schemas. It knows no quotas, admission or
//! field ownership: an apply is a merge in which lists are replaced. It collects no garbage, so that what a controller forgets stays to be seen.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::http::request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::published;

/// How a planned call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused with this status, and nothing is done.
    Refused(u16),
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It hangs until the client's own time limit, and nothing is done.
    Hangs,
}

/// On a pod: its log.
pub(crate) const LOG: &str = "log";

/// What kube's client waits for at most, unless told otherwise.
const READ_TIMEOUT: Duration = Duration::from_secs(295);

/// A call as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch` or `delete`, as in RBAC.
    pub(crate) verb: &'static str,
    /// The API group; empty for the core group.
    pub(crate) group: String,
    /// The kind in plural, with the subresource.
    pub(crate) what: String,
    /// The object's name, if it is of one; of an Event, what it is about.
    pub(crate) name: String,
}

impl Call {
    pub(crate) fn is_write(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch")
    }
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    plural: String,
    namespace: String,
    name: String,
}

#[derive(Default)]
struct State {
    version: u64,
    uids: u64,
    objects: BTreeMap<Place, Value>,
    /// What happened since the start: version, kind in plural, type, object.
    events: Vec<(u64, String, &'static str, Value)>,
    /// Watches that go on from before this version are told that it is gone.
    oldest: u64,
    calls: Vec<Call>,
    /// What was written at this moment, and how often.
    written: (Option<Instant>, HashMap<String, usize>),
    watches: Vec<Call>,
    faults: HashMap<usize, Fault>,
    /// The same for watches, which are counted for themselves.
    watch_faults: HashMap<usize, Fault>,
    /// Refuses to make a kind, or what else is said, in these words.
    refusals: HashMap<String, String>,
    /// Kinds that users are told not to be allowed to read.
    forbidden: Vec<String>,
    /// Whether the cluster has ever heard of snapshots.
    knows_snapshots: bool,
    /// Whether it has never heard of grants.
    knows_no_grants: bool,
    /// How long each answer takes.
    latency: Duration,
    /// How long each event of a watch takes, one after the other.
    lag: Duration,
    /// Watches of this kind tell nothing.
    mute: Option<String>,
    now: i64,
}

/// The server; clones are the same one.
#[derive(Clone)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl FakeApi {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            changed: watch::channel(0).0,
        }
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The call with this number, counted from 0 over all, will fail so.
    pub(crate) fn fail(&self, number: usize, fault: Fault) {
        self.state().faults.insert(number, fault);
    }

    /// The watch with this number will fail so.
    pub(crate) fn fail_watch(&self, number: usize, fault: Fault) {
        self.state().watch_faults.insert(number, fault);
    }

    /// Each answer takes so long.
    pub(crate) fn take_time(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Watches are behind: each event comes so long after the one before.
    pub(crate) fn lag(&self, lag: Duration) {
        self.state().lag = lag;
    }

    /// Watches of a kind tell nothing any more.
    pub(crate) fn mute(&self, plural: &str) {
        self.state().mute = Some(plural.to_owned());
    }

    /// They tell it all.
    pub(crate) fn unmute(&self) {
        self.state().mute = None;
        self.tell();
    }

    /// Nothing of this kind is made while `words` are set. With a verb before the kind, it is that which is refused,
    /// and with `/` and a name after it, only of that object. `NUMBER` in the words is another one each time.
    pub(crate) fn refuse(&self, what: &str, words: Option<&str>) {
        let mut state = self.state();
        match words {
            Some(words) => state.refusals.insert(what.to_owned(), words.to_owned()),
            None => state.refusals.remove(what),
        };
    }

    /// Tells users that they may not read a kind.
    pub(crate) fn forbid(&self, plural: &str) {
        self.state().forbidden.push(plural.to_owned());
    }

    /// Installs the kinds of snapshots.
    pub(crate) fn know_snapshots(&self) {
        self.state().knows_snapshots = true;
    }

    /// Removes the kind of grants.
    pub(crate) fn forget_grants(&self) {
        self.state().knows_no_grants = true;
    }

    /// Forgets what happened, as an API server does: watches have to begin anew.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.oldest = state.version;
        drop(state);
        self.changed.send_modify(|_| {});
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    pub(crate) fn watches(&self) -> Vec<Call> {
        self.state().watches.clone()
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        let state = self.state();
        let of_kind = state
            .objects
            .iter()
            .filter(|(place, _)| place.plural == plural);
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    /// How many objects of a kind there are of which `sort` says the same.
    pub(crate) fn tally(
        &self,
        plural: &str,
        sort: impl Fn(&Value) -> &Value,
    ) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let state = self.state();
        let of_kind = state.objects.iter();
        for (_, object) in of_kind.filter(|(place, _)| place.plural == plural) {
            let sort = sort(object).as_str().unwrap_or_default();
            *counts.entry(sort.to_owned()).or_default() += 1;
        }
        counts
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state()
            .objects
            .get(&place(plural, namespace, name))
            .cloned()
    }

    /// Every object's kind, namespace and name.
    pub(crate) fn inventory(&self) -> Vec<String> {
        let state = self.state();
        let shown = |place: &Place| format!("{} {}/{}", place.plural, place.namespace, place.name);
        state.objects.keys().map(shown).collect()
    }

    /// Makes an object as a user would.
    pub(crate) fn create(&self, plural: &str, object: Value) {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let made = self
            .state()
            .create(&place(plural, &namespace, &name), object);
        assert!(made.is_ok(), "{made:?}");
        self.tell();
    }

    /// Changes an object as a user, a kubelet or a driver would.
    pub(crate) fn change(&self, plural: &str, namespace: &str, name: &str, patch: &Value) {
        let _gone = self
            .state()
            .change(&place(plural, namespace, name), |object| {
                merge(object, patch)
            });
        self.tell();
    }

    /// Deletes an object as a user would.
    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let _gone = self.state().delete(&place(plural, namespace, name));
        self.tell();
    }

    /// Removes an object that was deleted and whose time is over.
    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.state().remove(&place(plural, namespace, name));
        self.tell();
    }

    fn tell(&self) {
        let version = self.state().version;
        self.changed.send_replace(version);
    }

    /// Serves a client of another process. Dropped, it ends.
    #[expect(clippy::infinite_loop, reason = "it is said by the type")]
    pub(crate) async fn serve(&self, listener: TcpListener) -> Infallible {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let api = self.clone();
            connections.spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let api = api.clone();
                    async move { Ok::<_, Infallible>(api.answer(request).await) }
                });
                let connection = http1::Builder::new();
                // A client that goes is no concern.
                let _ended = connection
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: hyper::body::Body,
        B::Error: Debug,
    {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = head.uri.path().to_owned();
        let query = query(head.uri.query().unwrap_or_default());
        let latency = self.state().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let is_known = |group: &str| {
            let state = self.state();
            (state.knows_snapshots || !group.starts_with("snapshot."))
                && !(state.knows_no_grants && group.starts_with("gateway."))
        };
        let parsed = parse(&path).filter(|(group, ..)| is_known(group));
        let Some((group, place, subresource)) = parsed else {
            // What an API server says of kinds that it doesn't know is no object.
            let mut response = respond(404, &Value::Null);
            *response.body_mut() = Full::new(Bytes::from("404 page not found\n")).boxed();
            return response;
        };
        let is_list = place.name.is_empty() && head.method == Method::GET;
        if is_list
            && query
                .get("watch")
                .is_some_and(|it| it == "true" || it == "1")
        {
            let call = Call {
                verb: "watch",
                group,
                what: place.plural.clone(),
                name: String::new(),
            };
            let fault = {
                let mut state = self.state();
                let number = state.watches.len();
                state.watches.push(call);
                state.watch_faults.get(&number).copied()
            };
            return match fault {
                Some(Fault::Refused(code)) => refusal(code, reason(code), "a planned fault"),
                Some(Fault::AnswerLost) => refusal(504, "Timeout", "a planned fault"),
                // Until the client has had enough of it.
                Some(Fault::Hangs) => {
                    let silent = StreamBody::new(Box::pin(SyncStream(Mutex::new(
                        stream::pending().boxed(),
                    ))));
                    Response::new(BodyExt::boxed(silent))
                }
                None => self.watch(place, &query, is_metadata_only(&head)),
            };
        }
        let verb = match head.method {
            Method::GET if is_list => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => return refusal(405, "MethodNotAllowed", "no such verb"),
        };
        let separator = if subresource.is_empty() { "" } else { "/" };
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        // A merge patch is a part of an object: what it makes of that is not looked at.
        if matches!(verb, "create" | "update" | "patch") && body["kind"].is_string() {
            let faults = published::faults(&body);
            assert!(faults.is_empty(), "{verb} {body}: {faults:?}");
        }
        let names = [&body["regarding"]["name"], &body["metadata"]["name"]];
        let name = names.into_iter().find_map(Value::as_str);
        let call = Call {
            verb,
            group,
            what: format!("{}{separator}{subresource}", place.plural),
            name: name.unwrap_or(&place.name).to_owned(),
        };
        let fault = {
            let mut state = self.state();
            state.check_pace(&call);
            let number = state.calls.len();
            state.calls.push(call);
            state.faults.get(&number).copied()
        };
        match fault {
            Some(Fault::Refused(code)) => {
                return refusal(code, reason(code), "a planned fault");
            }
            Some(Fault::Hangs) => {
                tokio::time::sleep(READ_TIMEOUT).await;
                return refusal(504, "Timeout", "a planned fault: there was no answer");
            }
            _ => {}
        }
        let metadata_only = is_metadata_only(&head);
        let answer = self
            .state()
            .call(verb, &place, &subresource, &query, body, metadata_only);
        self.tell();
        if fault == Some(Fault::AnswerLost) {
            return refusal(504, "Timeout", "a planned fault: the answer was lost");
        }
        match answer {
            Ok(pod) if subresource == "log" => {
                let log = pod["metadata"]["annotations"][LOG].as_str();
                let log = Bytes::from(log.unwrap_or_default().to_owned());
                Response::new(Full::new(log).boxed())
            }
            Ok(object) => respond(200, &object),
            Err((code, reason, message)) => refusal(code, reason, &message),
        }
    }

    /// A watch: what happened since, then what happens; a bookmark now and then; cut after some events.
    fn watch(&self, place: Place, query: &HashMap<String, String>, metadata_only: bool) -> Answer {
        // Where time counts watches are not cut for nothing.
        let events_max = if self.state().latency.is_zero() {
            7
        } else {
            10_000
        };
        let since = query
            .get("resourceVersion")
            .and_then(|it| it.parse().ok())
            .unwrap_or(0);
        let selector = |key: &str| query.get(key).cloned().unwrap_or_default();
        let watched = Watched {
            place,
            labels: selector("labelSelector"),
            fields: selector("fieldSelector"),
            metadata_only,
            since,
            looked_until: since,
        };
        let api = self.clone();
        let changed = self.changed.subscribe();
        let lines = stream::unfold(
            (watched, 0, changed),
            move |(mut watched, sent, mut changed)| {
                let api = api.clone();
                async move {
                    if sent >= events_max {
                        return None;
                    }
                    loop {
                        changed.borrow_and_update();
                        let next = api.state().next_event(&mut watched);
                        let lag = api.state().lag;
                        if !lag.is_zero() && matches!(next, Next::Event(_)) {
                            tokio::time::sleep(lag).await;
                        }
                        match next {
                            Next::Event(line) => return Some((line, (watched, sent + 1, changed))),
                            Next::Gone(line) => {
                                return Some((line, (watched, events_max, changed)));
                            }
                            Next::Nothing => {}
                        }
                        let waited =
                            tokio::time::timeout(Duration::from_secs(60), changed.changed());
                        if waited.await.is_err() {
                            let line = api.state().bookmark(&mut watched);
                            return Some((line, (watched, sent + 1, changed)));
                        }
                    }
                }
            },
        );
        let frames = lines.map(|line| Ok(Frame::data(Bytes::from(line))));
        Response::new(BodyExt::boxed(StreamBody::new(Box::pin(SyncStream(
            Mutex::new(frames.boxed()),
        )))))
    }
}

/// What a watch is for, and how far it is.
struct Watched {
    place: Place,
    labels: String,
    fields: String,
    metadata_only: bool,
    /// The version that was told last.
    since: u64,
    /// The version until which there is nothing to tell.
    looked_until: u64,
}

/// A stream that can be shared, since a body has to be.
struct SyncStream<S>(Mutex<S>);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.lock().unwrap().poll_next_unpin(context)
    }
}

enum Next {
    Event(String),
    Gone(String),
    Nothing,
}

type Outcome = Result<Value, (u16, &'static str, String)>;

impl State {
    fn call(
        &mut self,
        verb: &str,
        place: &Place,
        subresource: &str,
        query: &HashMap<String, String>,
        body: Value,
        metadata_only: bool,
    ) -> Outcome {
        let name = body["metadata"]["name"].as_str().unwrap_or(&place.name);
        let kind = format!("{verb} {}", place.plural);
        self.check_refusals([&kind, &format!("{kind}/{name}")])?;
        match verb {
            "list" => {
                let empty = String::new();
                let labels = query.get("labelSelector").unwrap_or(&empty);
                let fields = query.get("fieldSelector").unwrap_or(&empty);
                let items = self.objects.iter().filter(|(at, object)| {
                    at.plural == place.plural
                        && (place.namespace.is_empty() || at.namespace == place.namespace)
                        && has_labels(object, labels)
                        && has_fields(object, fields)
                });
                let items = items.map(|(_, object)| {
                    if metadata_only {
                        only_metadata(object)
                    } else {
                        object.clone()
                    }
                });
                // As from a server: in pages, of the version that the first one had.
                let limit = query.get("limit").and_then(|it| it.parse().ok());
                let token = query.get("continue").and_then(|it| it.split_once('/'));
                let (version, skipped) = token.map_or_else(
                    || (self.version.to_string(), 0),
                    |(version, skipped)| (version.to_owned(), skipped.parse().unwrap()),
                );
                let mut items = items.skip(skipped);
                let page: Vec<_> = items.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
                let next =
                    (items.next().is_some()).then(|| format!("{version}/{}", skipped + page.len()));
                Ok(json!({
                    "apiVersion": "v1", "kind": "List", "items": page,
                    "metadata": {"resourceVersion": version, "continue": next},
                }))
            }
            "get" => self.found(place).cloned(),
            "create" => {
                let name = body["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                if place.plural == "selfsubjectaccessreviews" {
                    let mut review = body;
                    let kind = review["spec"]["resourceAttributes"]["resource"].clone();
                    let is_allowed = !self.forbidden.iter().any(|forbidden| kind == **forbidden);
                    review["status"] = json!({"allowed": is_allowed});
                    return Ok(review);
                }
                let place = Place {
                    name,
                    ..place.clone()
                };
                let is_trial = query.get("dryRun").is_some_and(|it| it == "All");
                let was_there = self.objects.contains_key(&place);
                let made = self.create(&place, body);
                if is_trial && !was_there {
                    self.objects.remove(&place);
                    self.events
                        .retain(|(.., object)| made.as_ref() != Ok(object));
                }
                made
            }
            "update" => {
                self.check_version(place, &body)?;
                self.change(place, |object| {
                    if subresource == "status" {
                        object["status"] = body["status"].clone();
                    } else {
                        let status = object["status"].take();
                        let metadata = object["metadata"].clone();
                        *object = body.clone();
                        object["status"] = status;
                        for fixed in ["uid", "creationTimestamp", "generation"] {
                            object["metadata"][fixed] = metadata[fixed].clone();
                        }
                    }
                })
            }
            "patch" => {
                let is_apply = query.contains_key("fieldManager") && query.contains_key("force");
                if is_apply && !self.objects.contains_key(place) {
                    return self.create(place, body);
                }
                self.check_version(place, &body)?;
                self.change(place, |object| merge(object, &body))
            }
            "delete" => {
                let found = self.found(place)?;
                for field in ["uid", "resourceVersion"] {
                    let wanted = &body["preconditions"][field];
                    if !wanted.is_null() && *wanted != found["metadata"][field] {
                        let message = format!("the {field} in the precondition differs");
                        return Err((409, "Conflict", message));
                    }
                }
                self.delete(place)
            }
            _ => unreachable!("{verb}"),
        }
    }

    fn found(&self, place: &Place) -> Result<&Value, (u16, &'static str, String)> {
        self.objects.get(place).ok_or_else(|| {
            let message = format!("{} \"{}\" not found", place.plural, place.name);
            (404, "NotFound", message)
        })
    }

    /// Time passes only when everybody waits: who writes an object for ever would never be found out.
    fn check_pace(&mut self, call: &Call) {
        let (at, counts) = &mut self.written;
        if at.replace(Instant::now()) != *at {
            counts.clear();
        }
        if call.is_write() && !call.name.is_empty() {
            let what = format!("{} {} {}", call.verb, call.what, call.name);
            let count = counts.entry(what).or_default();
            *count += 1;
            assert!(*count < 1000, "written for ever: {call:?}");
        }
    }

    fn check_refusals<const N: usize>(
        &self,
        what: [&String; N],
    ) -> Result<(), (u16, &'static str, String)> {
        let Some(words) = what.into_iter().find_map(|what| self.refusals.get(what)) else {
            return Ok(());
        };
        let words = words.replace("NUMBER", &self.calls.len().to_string());
        Err((403, "Forbidden", words))
    }

    fn check_version(
        &self,
        place: &Place,
        body: &Value,
    ) -> Result<(), (u16, &'static str, String)> {
        let found = self.found(place)?;
        let wanted = &body["metadata"]["resourceVersion"];
        if wanted.is_null() || *wanted == found["metadata"]["resourceVersion"] {
            return Ok(());
        }
        let message =
            "the object has been modified; please apply your changes to the latest version";
        Err((409, "Conflict", message.to_owned()))
    }

    fn create(&mut self, place: &Place, mut object: Value) -> Outcome {
        if self.objects.contains_key(place) {
            let message = format!("{} \"{}\" already exists", place.plural, place.name);
            return Err((409, "AlreadyExists", message));
        }
        self.check_refusals([&place.plural])?;
        self.uids += 1;
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.uids));
        metadata["generation"] = json!(1);
        metadata["creationTimestamp"] = json!(super::now().to_string());
        if !place.namespace.is_empty() {
            metadata["namespace"] = json!(place.namespace);
        }
        self.put(place, object, "ADDED")
    }

    /// Changes an object; one that stays as it is keeps its version.
    fn change(&mut self, place: &Place, change: impl FnOnce(&mut Value)) -> Outcome {
        let before = self.found(place)?.clone();
        let mut object = before.clone();
        change(&mut object);
        object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        strip_nulls(&mut object);
        if object == before {
            return Ok(object);
        }
        if object["spec"] != before["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(0);
            object["metadata"]["generation"] = json!(generation + 1);
        }
        let is_free = object["metadata"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty);
        let is_going = object["metadata"]["deletionTimestamp"].is_string();
        if is_free && is_going && place.plural != "pods" && !self.is_mounted(place) {
            self.remove(place);
            return Ok(object);
        }
        self.put(place, object, "MODIFIED")
    }

    /// A pod has a grace period, what has finalizers waits for them, and a claim waits for the pods that use it; all
    /// else is gone at once.
    fn delete(&mut self, place: &Place) -> Outcome {
        let object = self.found(place)?;
        let has_finalizers = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|finalizers| !finalizers.is_empty());
        if !has_finalizers && place.plural != "pods" && !self.is_mounted(place) {
            let gone = object.clone();
            self.remove(place);
            return Ok(gone);
        }
        self.change(place, |object| {
            let at = &mut object["metadata"]["deletionTimestamp"];
            if at.is_null() {
                *at = json!(super::now().to_string());
            }
        })
    }

    fn remove(&mut self, place: &Place) {
        if let Some(mut object) = self.objects.remove(place) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.events
                .push((self.version, place.plural.clone(), "DELETED", object));
        }
        if place.plural == "pods" {
            self.let_claims_go(&place.namespace);
        }
    }

    /// Whether a claim has a pod that uses it, on a node. One that has ended counts until it is deleted: so does
    /// Kubernetes, by the finalizer `kubernetes.io/pvc-protection`.
    fn is_mounted(&self, place: &Place) -> bool {
        place.plural == "persistentvolumeclaims"
            && self.objects.iter().any(|(pod, object)| {
                let spec = &object["spec"];
                let claims = spec["volumes"].as_array().into_iter().flatten();
                (pod.plural.as_str(), &pod.namespace) == ("pods", &place.namespace)
                    && spec["nodeName"].is_string()
                    && claims
                        .map(|volume| &volume["persistentVolumeClaim"]["claimName"])
                        .any(|name| *name == *place.name)
            })
    }

    /// Claims that were deleted while a pod used them go with the last of these.
    fn let_claims_go(&mut self, namespace: &str) {
        let free: Vec<_> = self
            .objects
            .iter()
            .filter(|(place, claim)| {
                (place.plural.as_str(), place.namespace.as_str())
                    == ("persistentvolumeclaims", namespace)
                    && claim["metadata"]["deletionTimestamp"].is_string()
                    && !self.is_mounted(place)
            })
            .map(|(place, _)| place.clone())
            .collect();
        for place in free {
            self.remove(&place);
        }
    }

    fn put(&mut self, place: &Place, mut object: Value, event: &'static str) -> Outcome {
        self.now += 1;
        self.version += 1;
        strip_nulls(&mut object);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.events
            .push((self.version, place.plural.clone(), event, object.clone()));
        self.objects.insert(place.clone(), object.clone());
        Ok(object)
    }

    fn next_event(&self, watched: &mut Watched) -> Next {
        if self.mute.as_ref() == Some(&watched.place.plural) {
            return Next::Nothing;
        }
        if watched.since < self.oldest {
            let line = json!({"type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
                "code": 410, "message": "too old resource version"}});
            return Next::Gone(format!("{line}\n"));
        }
        let place = &watched.place;
        let seen = self
            .events
            .partition_point(|(version, ..)| *version <= watched.looked_until);
        let next = self.events[seen..].iter().find(|(_, plural, _, object)| {
            *plural == place.plural
                && (place.namespace.is_empty()
                    || object["metadata"]["namespace"] == place.namespace)
                && has_labels(object, &watched.labels)
                && has_fields(object, &watched.fields)
        });
        let Some((version, _, event, object)) = next else {
            watched.looked_until = self.version;
            return Next::Nothing;
        };
        (watched.since, watched.looked_until) = (*version, *version);
        let object = if watched.metadata_only {
            only_metadata(object)
        } else {
            object.clone()
        };
        Next::Event(format!("{}\n", json!({"type": event, "object": object})))
    }

    fn bookmark(&self, watched: &mut Watched) -> String {
        let (api_version, kind) = match &*watched.place.plural {
            "volumeclones" => ("volferry.io/v1alpha1", "VolumeClone"),
            "pods" => ("v1", "Pod"),
            _ => ("v1", "PersistentVolumeClaim"),
        };
        let line = json!({"type": "BOOKMARK", "object": {
            "apiVersion": api_version, "kind": kind,
            "metadata": {"resourceVersion": self.version.to_string()}}});
        (watched.since, watched.looked_until) = (self.version, self.version);
        format!("{line}\n")
    }
}

fn only_metadata(object: &Value) -> Value {
    json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": object["metadata"],
    })
}

fn is_metadata_only(head: &request::Parts) -> bool {
    let accept = head.headers.get("accept");
    let accept = accept.and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("as=PartialObjectMetadata"))
}

fn reason(code: u16) -> &'static str {
    match code {
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    }
}

fn place(plural: &str, namespace: &str, name: &str) -> Place {
    Place {
        plural: plural.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// `/api/v1/…` or `/apis/GROUP/VERSION/…`, then a namespace, a kind, a name, a subresource.
fn parse(path: &str) -> Option<(String, Place, String)> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, rest) = match &parts[..] {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] => (*namespace, [&[*plural], rest].concat()),
        rest => ("", rest.to_vec()),
    };
    let plural = rest.first()?;
    let name = rest.get(1).copied().unwrap_or_default();
    let subresource = rest.get(2).copied().unwrap_or_default();
    let place = place(plural, namespace, name);
    Some((group.to_owned(), place, subresource.to_owned()))
}

fn query(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn has_labels(object: &Value, selector: &str) -> bool {
    let labels = &object["metadata"]["labels"];
    selector
        .split(',')
        .filter(|term| !term.is_empty())
        .all(|term| match term.split_once('=') {
            Some((key, value)) => match key.strip_suffix('!') {
                Some(key) => labels[key] != value,
                None => labels[key] == value,
            },
            None => match term.strip_prefix('!') {
                Some(key) => labels[key].is_null(),
                None => !labels[term].is_null(),
            },
        })
}

fn has_fields(object: &Value, selector: &str) -> bool {
    let field = |path: &str| path.split('.').fold(object, |at, key| &at[key]);
    selector
        .split(',')
        .filter(|term| !term.is_empty())
        .all(|term| match term.split_once("!=") {
            Some((path, value)) => *field(path) != value,
            None => term
                .split_once('=')
                .is_none_or(|(path, value)| *field(path) == value),
        })
}

/// RFC 7386.
pub(crate) fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

fn respond(code: u16, object: &Value) -> Answer {
    let body = Full::new(Bytes::from(object.to_string())).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = code.try_into().unwrap();
    response
}

fn refusal(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": message, "code": code});
    respond(code, &status)
}
