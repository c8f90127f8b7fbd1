//! `kubectl volferry doctor`: what would become of a clone, before any byte moves.
//!
//! Nothing is chosen here: the controller's own [`decide`] is asked again and again, about a world in which
//! all that it wants made is there ([`rehearse`]). What it wants is then shown to the API server, which says
//! what quotas, policies and Pod Security would say, and makes nothing.

use std::fmt::Write as _;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, ResourceQuota};
use k8s_openapi::jiff::Timestamp;
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, ObjectMeta, PostParams,
};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::api::{VolumeClone, VolumeCloneStatus};
use crate::claims;
use crate::cluster::{Cluster, ClusterError, Look};
use crate::decide::{Step, decide};
use crate::names::{self, End, FINALIZER};
use crate::objects::Object;
use crate::plugin::{in_words, report};
use crate::world::{Belonging, Kind, Settings, Surroundings, World};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it stands.
    pub verdict: Verdict,
    /// What was looked at.
    pub what: String,
    /// What is to be known of it.
    pub text: String,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is in the way.
    Fine,
    /// It can't be known from here, or may hold the clone up.
    Unsure,
    /// The clone won't come to its end like this.
    Wrong,
}

/// What would happen, and what stands in its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
    /// What the status would say; empty where that can't be known.
    pub outlook: String,
}

impl Diagnosis {
    fn note(&mut self, verdict: Verdict, what: impl Into<String>, text: impl Into<String>) {
        self.findings.push(Finding {
            verdict,
            what: what.into(),
            text: text.into(),
        });
    }

    /// Whether nothing is known that stands in the way.
    #[must_use]
    pub fn is_hopeful(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.verdict != Verdict::Wrong)
    }

    /// As people read it.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let sign = match finding.verdict {
                Verdict::Fine => "ok",
                Verdict::Unsure => "?",
                Verdict::Wrong => "NO",
            };
            let _never = writeln!(text, "{sign:4}{:26}{}", finding.what, finding.text);
        }
        if !self.outlook.is_empty() {
            let _never = write!(text, "\nwhat would happen:\n{}", self.outlook);
        }
        text
    }
}

/// What the controller would do, one thing after the other, as if everything went well.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// The clone with its last status.
    pub clone: VolumeClone,
    /// What would be made.
    pub objects: Vec<Object>,
}

/// Asks the controller's decision until it wants nothing new, and has each wish come true.
#[must_use]
pub fn rehearse(mut world: World) -> Rehearsal {
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

/// Looks at everything that a clone like `wanted` needs. `settings` is the controller's, or why it can't
/// be known.
///
/// # Errors
/// When the API server can't be asked at all.
pub async fn examine(
    client: &Client,
    wanted: &VolumeClone,
    settings: Result<Settings, String>,
    now: Timestamp,
) -> Result<Diagnosis, String> {
    let mut found = Diagnosis::default();
    let settings = installed(client, settings, &mut found).await;
    let clone = admitted(client, wanted, &mut found).await;
    let may_look = permissions(client, &clone, &mut found).await?;
    nodes(client, &settings.image, &mut found).await;
    for namespace in namespaces(&clone) {
        policies(client, namespace, &mut found).await;
    }
    if !may_look {
        let text = "not known: what has to be read for that may not be read by you";
        found.note(Verdict::Unsure, "way", text);
        return Ok(found);
    }
    let in_text = |error: ClusterError| error.to_string();
    let cluster = Cluster::around(client.clone(), "doctor".to_owned(), &clone);
    let cluster = Box::pin(cluster).await.map_err(in_text)?;
    let around = cluster.surroundings(&clone, Look::Full);
    let around = Box::pin(around).await.map_err(in_text)?;
    let target_claim = cluster.claim(clone.target_namespace(), clone.target_claim());
    classes(&around, &clone, target_claim.as_ref(), &mut found);
    let world = world(clone, settings, around, target_claim, now);
    let rehearsal = rehearse(world);
    judge(&rehearsal, &mut found);
    for object in &rehearsal.objects {
        try_out(client, object, &mut found).await;
    }
    quotas(client, &rehearsal, &mut found).await;
    found.outlook = report(&rehearsal.clone, now);
    Ok(found)
}

fn world(
    clone: VolumeClone,
    settings: Settings,
    around: Surroundings,
    target_claim: Option<PersistentVolumeClaim>,
    now: Timestamp,
) -> World {
    World {
        now,
        settings,
        clone,
        pods: Vec::new(),
        belongings: Vec::new(),
        target_claim,
        prime_claim: None,
        prime_volume: None,
        referring_claims: Vec::new(),
        surroundings: Some(around),
        report: None,
        rejection: None,
        admission: Ok(()),
    }
}

async fn installed(
    client: &Client,
    settings: Result<Settings, String>,
    found: &mut Diagnosis,
) -> Settings {
    match settings {
        Ok(settings) => {
            let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
                Api::namespaced(client.clone(), &settings.namespace);
            let lease = leases.get_opt("volferry-controller").await;
            let holder = lease.map(|lease| lease.and_then(|lease| lease.spec?.holder_identity));
            let (verdict, text) = match holder {
                Ok(Some(holder)) if !holder.is_empty() => (
                    Verdict::Fine,
                    format!("{holder} leads in {}", settings.namespace),
                ),
                Ok(_) => (
                    Verdict::Wrong,
                    format!("none leads in {}", settings.namespace),
                ),
                Err(error) => (Verdict::Unsure, format!("not known: {}", in_words(error))),
            };
            found.note(verdict, "controller", text);
            settings
        }
        Err(why) => {
            found.note(Verdict::Unsure, "controller", why);
            Settings {
                image: "volferry".to_owned(),
                image_pull_policy: "IfNotPresent".to_owned(),
                namespace: "volferry-system".to_owned(),
            }
        }
    }
}

/// What the API server would make of the object; nothing is made.
async fn admitted(client: &Client, wanted: &VolumeClone, found: &mut Diagnosis) -> VolumeClone {
    let clones: Api<VolumeClone> = Api::namespaced(client.clone(), wanted.target_namespace());
    match clones.create(&dry_run(), wanted).await {
        Ok(clone) => {
            found.note(Verdict::Fine, "VolumeClone", "the API server takes it");
            clone
        }
        Err(error) => {
            found.note(Verdict::Wrong, "VolumeClone", in_words(error));
            let mut clone = wanted.clone();
            clone.metadata.uid = Some("00000000-0000-4000-8000-000000000000".to_owned());
            clone
        }
    }
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// A right that is needed to look, with the kind's group.
struct Right {
    verb: &'static str,
    group: &'static str,
    kind: &'static str,
    namespace: Option<String>,
}

/// Asks for what has to be read; whether all of it may be.
async fn permissions(
    client: &Client,
    clone: &VolumeClone,
    found: &mut Diagnosis,
) -> Result<bool, String> {
    let home = || Some(clone.target_namespace().to_owned());
    let away = || Some(clone.source_namespace().to_owned());
    let right = |verb, group, kind, namespace| Right {
        verb,
        group,
        kind,
        namespace,
    };
    let rights = [
        right("get", "", "persistentvolumeclaims", away()),
        right("list", "", "pods", away()),
        right("get", "", "persistentvolumeclaims", home()),
        right("list", "", "pods", home()),
        right("list", "", "events", home()),
        right("get", "", "persistentvolumes", None),
        right("get", "", "namespaces", None),
        right("list", "storage.k8s.io", "storageclasses", None),
        right(
            "list",
            "snapshot.storage.k8s.io",
            "volumesnapshotclasses",
            None,
        ),
        right("get", "snapshot.storage.k8s.io", "volumesnapshots", away()),
        right(
            "list",
            "gateway.networking.k8s.io",
            "referencegrants",
            away(),
        ),
    ];
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for right in rights {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(right.verb.to_owned()),
                    group: Some(right.group.to_owned()),
                    resource: Some(right.kind.to_owned()),
                    namespace: right.namespace.clone(),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(in_words)?;
        if !answer.status.is_some_and(|status| status.allowed) {
            let place = right
                .namespace
                .map_or_else(String::new, |it| format!(" in {it}"));
            missing.push(format!("{} {}{place}", right.verb, right.kind));
        }
    }
    if missing.is_empty() {
        found.note(
            Verdict::Fine,
            "permissions",
            "you may read what is looked at here",
        );
    } else {
        let text = format!("you may not {}", missing.join(", "));
        found.note(Verdict::Unsure, "permissions", text);
    }
    Ok(missing.is_empty())
}

/// Whether there are nodes for pods, and whether they have the image.
async fn nodes(client: &Client, image: &str, found: &mut Diagnosis) {
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.list(&ListParams::default()).await {
        Ok(nodes) => found.findings.extend(of_nodes(&nodes.items, image)),
        Err(error) => {
            let text = format!("not known: {}", in_words(error));
            found.note(Verdict::Unsure, "nodes", text);
        }
    }
}

fn of_nodes(nodes: &[Node], image: &str) -> [Finding; 2] {
    let is_open = |node: &&Node| {
        let is_closed = node
            .spec
            .as_ref()
            .is_some_and(|spec| spec.unschedulable == Some(true));
        let conditions = node
            .status
            .iter()
            .flat_map(|status| &status.conditions)
            .flatten();
        !is_closed
            && conditions
                .into_iter()
                .any(|it| it.type_ == "Ready" && it.status == "True")
    };
    let open: Vec<_> = nodes.iter().filter(is_open).collect();
    let has_image = |node: &&&Node| {
        let images = node
            .status
            .iter()
            .flat_map(|status| &status.images)
            .flatten();
        let mut names = images.flat_map(|image| image.names.iter().flatten());
        // A node calls it by its full name.
        names.any(|name| name == image || name.ends_with(&format!("/{image}")))
    };
    let holding = open.iter().filter(has_image).count();
    let finding = |verdict, what: &str, text| Finding {
        verdict,
        what: what.to_owned(),
        text,
    };
    let all = open.len();
    let nodes = match all {
        0 => finding(
            Verdict::Wrong,
            "nodes",
            "none is ready and takes pods".to_owned(),
        ),
        _ => finding(
            Verdict::Fine,
            "nodes",
            format!("{all} of {} take pods", nodes.len()),
        ),
    };
    let image = match holding {
        0 => finding(
            Verdict::Unsure,
            "image",
            format!("{image} is on no node yet: whether it can be pulled shows with the first pod"),
        ),
        _ => finding(
            Verdict::Fine,
            "image",
            format!("{image} is on {holding} of {all} nodes"),
        ),
    };
    [nodes, image]
}

/// What of the network only an administrator can open. Policies of a namespace add to those of the agents
/// and take nothing away.
async fn policies(client: &Client, namespace: &str, found: &mut Diagnosis) {
    let kind = GroupVersionKind::gvk("policy.networking.k8s.io", "v1alpha1", "AdminNetworkPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "adminnetworkpolicies");
    let of_admin: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let of_admin = of_admin.list(&ListParams::default()).await;
    let of_admin = of_admin.map_or(0, |list| list.items.len());
    let api: Api<k8s_openapi::api::networking::v1::NetworkPolicy> =
        Api::namespaced(client.clone(), namespace);
    let what = format!("policies in {namespace}");
    match (api.list(&ListParams::default()).await, of_admin) {
        (Ok(list), 0) => {
            let text = format!(
                "{}; agents have their own, which add to these",
                list.items.len()
            );
            found.note(Verdict::Fine, what, text);
        }
        (Ok(_), _) => found.note(
            Verdict::Unsure,
            what,
            format!("{of_admin} of administrators, which may forbid what agents' own allow"),
        ),
        (Err(error), _) => {
            found.note(
                Verdict::Unsure,
                what,
                format!("not known: {}", in_words(error)),
            );
        }
    }
}

/// What the target's storage class has to say.
fn classes(
    around: &Surroundings,
    clone: &VolumeClone,
    target: Option<&PersistentVolumeClaim>,
    found: &mut Diagnosis,
) {
    if target.is_some_and(claims::is_bound) {
        found.note(Verdict::Fine, "storage class", "the target has its volume");
        return;
    }
    let template = clone.spec.target.claim_template.as_ref();
    let named = target
        .and_then(|claim| claim.spec.as_ref()?.storage_class_name.clone())
        .or_else(|| template.and_then(|template| template.spec.storage_class_name.clone()));
    let default = "storageclass.kubernetes.io/is-default-class";
    let mut classes = around.storage_classes.iter();
    let class = classes.find(|class| match &named {
        Some(named) => class.name_any() == *named,
        None => class
            .annotations()
            .get(default)
            .is_some_and(|it| it == "true"),
    });
    let shown = named
        .clone()
        .unwrap_or_else(|| "the default one".to_owned());
    match class {
        Some(class) => {
            let mode = class.volume_binding_mode.as_deref().unwrap_or("Immediate");
            let text = format!("{}: {}, {mode}", class.name_any(), class.provisioner);
            found.note(Verdict::Fine, "storage class", text);
        }
        None => found.note(
            Verdict::Wrong,
            "storage class",
            format!("there is none like {shown}; name another by --storage-class"),
        ),
    }
}

/// What the last status says.
fn judge(rehearsal: &Rehearsal, found: &mut Diagnosis) {
    let status = rehearsal.clone.status.clone().unwrap_or_default();
    let VolumeCloneStatus {
        conditions,
        strategy,
        failure,
        ..
    } = status;
    if let Some(failure) = failure {
        found.note(
            Verdict::Wrong,
            "way",
            format!("{}: {}", failure.reason, failure.message),
        );
        return;
    }
    let progressing = conditions.iter().find(|it| it.type_ == "Progressing");
    let held = progressing.filter(|it| it.status == "False");
    match (held, strategy) {
        (Some(held), _) => {
            let text = format!("it would wait, {}: {}", held.reason, held.message);
            found.note(Verdict::Wrong, "way", text);
        }
        (None, Some(strategy)) => found.note(Verdict::Fine, "way", format!("{strategy:?}")),
        (None, None) => found.note(Verdict::Unsure, "way", "not known"),
    }
}

/// Has the API server say what it would of `object`: quotas, policies, Pod Security.
async fn try_out(client: &Client, object: &Object, found: &mut Diagnosis) {
    let (kind, value) = match object {
        Object::Pod(pod) => ("v1/Pod", json!(pod)),
        Object::NetworkPolicy(policy) => ("networking.k8s.io/v1/NetworkPolicy", json!(policy)),
        Object::Claim(claim) => ("v1/PersistentVolumeClaim", json!(claim)),
        Object::ConfigMap(map) => ("v1/ConfigMap", json!(map)),
        // Of kinds of others.
        Object::Snapshot(_) | Object::Clone(_) => return,
    };
    let parts: Vec<_> = kind.split('/').collect();
    let (group, kind) = match parts[..] {
        [group, _version, kind] => (group, kind),
        _ => ("", parts.last().copied().unwrap_or_default()),
    };
    let gvk = GroupVersionKind::gvk(group, "v1", kind);
    let resource = ApiResource::from_gvk(&gvk);
    let Ok(shown) = serde_json::from_value::<DynamicObject>(value) else {
        return;
    };
    let namespace = shown.namespace().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
    let described = object.describe();
    let word = described
        .rsplit_once(' ')
        .map_or("object", |(word, _name)| word);
    let what = format!("{word} in {namespace}");
    match api.create(&dry_run(), &shown).await {
        Ok(_) => found.note(Verdict::Fine, what, "the API server takes it"),
        Err(error) => {
            let words = in_words(error);
            // The controller has rights of its own.
            let is_yours = words.contains("cannot create resource");
            let verdict = if is_yours {
                Verdict::Unsure
            } else {
                Verdict::Wrong
            };
            found.note(verdict, what, words);
        }
    }
}

/// What quotas leave, since not every API server counts what is only tried.
async fn quotas(client: &Client, rehearsal: &Rehearsal, found: &mut Diagnosis) {
    for namespace in namespaces(&rehearsal.clone) {
        let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), namespace);
        match quotas.list(&ListParams::default()).await {
            Ok(quotas) => {
                let needs = needs(&rehearsal.objects, namespace);
                for quota in &quotas.items {
                    found.findings.push(of_quota(quota, namespace, &needs));
                }
            }
            Err(error) => {
                let text = format!("not known: {}", in_words(error));
                found.note(Verdict::Unsure, format!("quotas of {namespace}"), text);
            }
        }
    }
}

/// Pods, claims and bytes of claims that would be made in a namespace, in the words of quotas.
fn needs(objects: &[Object], namespace: &str) -> [(&'static str, u64); 3] {
    let (mut pods, mut count, mut bytes) = (0, 0, 0);
    for object in objects {
        match object {
            Object::Pod(pod) if pod.namespace().as_deref() == Some(namespace) => pods += 1,
            Object::Claim(claim) if claim.namespace().as_deref() == Some(namespace) => {
                count += 1;
                bytes += claims::size_bytes(claim).unwrap_or(0);
            }
            _ => {}
        }
    }
    [
        ("pods", pods),
        ("persistentvolumeclaims", count),
        ("requests.storage", bytes),
    ]
}

fn of_quota(quota: &ResourceQuota, namespace: &str, needs: &[(&str, u64)]) -> Finding {
    let status = quota.status.clone().unwrap_or_default();
    let of = |map: &Option<std::collections::BTreeMap<String, _>>, name: &str| {
        map.as_ref().and_then(|map| claims::bytes(map.get(name)?))
    };
    let short = needs.iter().filter_map(|(name, need)| {
        let hard = of(&status.hard, name)?;
        let used = of(&status.used, name).unwrap_or(0);
        let is_short = used.saturating_add(*need) > hard;
        is_short.then(|| format!("{name}: {used} of {hard} used, {need} more needed"))
    });
    let short: Vec<_> = short.collect();
    Finding {
        verdict: if short.is_empty() {
            Verdict::Fine
        } else {
            Verdict::Wrong
        },
        what: format!("quota in {namespace}"),
        text: match short.is_empty() {
            true => format!("{} leaves room", quota.name_any()),
            false => format!("{}: {}", quota.name_any(), short.join("; ")),
        },
    }
}

/// The namespaces of both ends.
fn namespaces(clone: &VolumeClone) -> impl Iterator<Item = &str> {
    let away = clone.is_cross_namespace().then(|| clone.source_namespace());
    [clone.target_namespace()].into_iter().chain(away)
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::Value;

    use super::*;
    use crate::api::Phase;
    use crate::names::CLONE_LABEL;
    use crate::world::Grant;

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn start(grants: Vec<Grant>) -> World {
        let clone: VolumeClone = of(json!({
            "apiVersion": "volferry.io/v1alpha1", "kind": "VolumeClone",
            "metadata": {"name": "copy", "namespace": "home", "uid": "uid"},
            "spec": {"source": {"namespace": "away", "persistentVolumeClaim": {"name": "from"}},
                "target": {"claimTemplate": {"metadata": {"name": "to"}}}},
        }));
        let source = of(json!({
            "metadata": {"name": "from", "namespace": "away"},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "volumeName": "pv",
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        }));
        let around = Surroundings {
            source_claim: Some(source),
            grants,
            ..Surroundings::default()
        };
        let settings = Settings {
            image: "volferry:1".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            namespace: "volferry-system".to_owned(),
        };
        world(clone, settings, around, None, Timestamp::UNIX_EPOCH)
    }

    fn grant() -> Grant {
        of(json!({
            "from": [{"group": "volferry.io", "kind": "VolumeClone", "namespace": "home"}],
            "to": [{"group": "", "kind": "PersistentVolumeClaim"}],
        }))
    }

    #[test]
    fn a_rehearsal_goes_as_far_as_both_pods() {
        let rehearsal = rehearse(start(vec![grant()]));
        let mut made: Vec<_> = rehearsal.objects.iter().map(Object::describe).collect();
        made.sort();
        assert_eq!(
            made,
            [
                "claim home/to",
                "network policy away/volferry-uid-source",
                "network policy home/volferry-uid-target",
                "pod away/volferry-uid-source",
                "pod home/volferry-uid-target",
            ]
        );
        let status = rehearsal.clone.status.clone().unwrap();
        assert_eq!(status.phase, Phase::Cloning);
        let mut found = Diagnosis::default();
        judge(&rehearsal, &mut found);
        assert!(found.is_hopeful(), "{found:?}");
        assert_eq!(needs(&rehearsal.objects, "away")[0], ("pods", 1));
        assert_eq!(
            needs(&rehearsal.objects, "home")[2],
            ("requests.storage", 1 << 30)
        );
        for object in &rehearsal.objects {
            if let Object::Pod(pod) = object {
                assert!(pod.labels().contains_key(CLONE_LABEL));
                assert!(pod.status.is_none(), "as it would be made");
            }
        }
    }

    #[test]
    fn a_rehearsal_ends_where_the_clone_would_wait() {
        let rehearsal = rehearse(start(Vec::new()));
        assert_eq!(rehearsal.objects, Vec::new());
        let mut found = Diagnosis::default();
        judge(&rehearsal, &mut found);
        assert!(!found.is_hopeful());
        let text = found.render();
        assert!(text.starts_with("NO  way"), "{text}");
        assert!(text.contains("NotGranted"), "{text}");
    }

    #[test]
    fn quotas_and_nodes_are_counted() {
        let quota: ResourceQuota = of(json!({"metadata": {"name": "small"}, "status": {
            "hard": {"requests.storage": "10Gi", "pods": "5"},
            "used": {"requests.storage": "8Gi", "pods": "4"}}}));
        let needs = |bytes| {
            [
                ("pods", 1),
                ("persistentvolumeclaims", 1),
                ("requests.storage", bytes),
            ]
        };
        assert_eq!(
            of_quota(&quota, "home", &needs(2 << 30)).verdict,
            Verdict::Fine
        );
        let short = of_quota(&quota, "home", &needs(3 << 30));
        assert_eq!(short.verdict, Verdict::Wrong);
        assert!(short.text.contains("requests.storage"), "{short:?}");

        let node = |ready: &str, closed: bool, image: &str| -> Node {
            of(
                json!({"metadata": {}, "spec": {"unschedulable": closed}, "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "images": [{"names": [image]}]}}),
            )
        };
        let open = node("True", false, "here.example/volferry:1");
        let verdicts = |nodes: &[Node]| of_nodes(nodes, "volferry:1").map(|it| it.verdict);
        assert_eq!(verdicts(&[open]), [Verdict::Fine, Verdict::Fine]);
        let closed = [node("False", false, ""), node("True", true, "volferry:1")];
        assert_eq!(verdicts(&closed), [Verdict::Wrong, Verdict::Unsure]);
    }
}
