//! `kubectl volferry doctor`: what would become of a clone, before any byte moves.
//!
//! Nothing is chosen here: the controller's own [`decide`](crate::decide::decide) is asked again and again, about a world in which
//! all that it wants made is there (`rehearsal`). What it wants is then shown to the API server, which says
//! what quotas, policies and Pod Security would say, and makes nothing (`trial`). `nodes` says where the pods
//! could run.

mod nodes;
mod rehearsal;
mod trial;

use std::fmt::Write as _;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Client, ResourceExt};

use self::nodes::Demand;
use self::rehearsal::{Rehearsal, rehearse};
use crate::api::{VolumeClone, VolumeCloneStatus};
use crate::claims;
use crate::cluster::{Cluster, ClusterError, Look};
use crate::decide::storage_class;
use crate::names::MANAGER;
use crate::objects::Object;
use crate::plugin::{in_words, report};
use crate::reason::Reason;
use crate::world::{Settings, Surroundings, Users, World};

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
    let nodes = nodes::look(client, &settings.image, &mut found).await;
    for namespace in clone.namespaces() {
        policies(client, namespace, &mut found).await;
    }
    if !may_look {
        let text = "not known: what has to be read for that may not be read by you";
        found.note(Verdict::Unsure, "way", text);
        return Ok(found);
    }
    let view = match Box::pin(observe(client, &clone)).await {
        Ok(view) => view,
        Err(error) => {
            found.note(Verdict::Unsure, "way", format!("not known: {error}"));
            return Ok(found);
        }
    };
    let class = classes(&view, &clone, &mut found).cloned();
    let volumes = [
        view.around
            .source_volume
            .as_ref()
            .and_then(Demand::of_volume),
        class.as_ref().map_or_else(
            || view.target_volume.as_ref().and_then(Demand::of_volume),
            Demand::of_class,
        ),
    ];
    let world = world(
        clone,
        settings,
        (view.users, view.around),
        view.target_claim,
        now,
    );
    let rehearsal = rehearse(world);
    judge(&rehearsal, &mut found);
    let pods = rehearsal.objects.iter().filter_map(|object| match object {
        Object::Pod(pod) => Some(&**pod),
        _ => None,
    });
    let places = nodes::places(&nodes, pods, &volumes);
    found.findings.extend(places);
    for object in &rehearsal.objects {
        trial::try_out(client, object, &mut found).await;
    }
    trial::quotas(client, &rehearsal, &mut found).await;
    found.outlook = report(&rehearsal.clone, now);
    Ok(found)
}

/// What is there of what a clone needs.
struct View {
    users: Users,
    around: Surroundings,
    target_claim: Option<PersistentVolumeClaim>,
    target_volume: Option<PersistentVolume>,
}

async fn observe(client: &Client, clone: &VolumeClone) -> Result<View, ClusterError> {
    let cluster = Cluster::around(client.clone(), "doctor".to_owned(), clone);
    let cluster = Box::pin(cluster).await?;
    let around = Box::pin(cluster.surroundings(clone, Look::Full)).await?;
    let target_claim = cluster.claim(clone.target_namespace(), clone.target_claim());
    let volume = target_claim
        .as_ref()
        .filter(|claim| claims::is_bound(claim))
        .and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
    let target_volume = match volume {
        Some(volume) => cluster.volume(&volume).await?,
        None => None,
    };
    Ok(View {
        users: cluster.users(clone),
        around,
        target_claim,
        target_volume,
    })
}

fn world(
    clone: VolumeClone,
    settings: Settings,
    (users, around): (Users, Surroundings),
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
        filled_volume: None,
        referring_claims: Vec::new(),
        users,
        surroundings: Some(around),
        report: None,
        silence: None,
        rejections: Vec::new(),
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
            let lease = leases.get_opt(MANAGER).await;
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
    let right = |verb, group, kind, namespace| Right {
        verb,
        group,
        kind,
        namespace,
    };
    const SNAPSHOTS: &str = "snapshot.storage.k8s.io";
    let mut rights = vec![
        right("get", "", "persistentvolumes", None),
        right("get", "", "namespaces", None),
        right("list", "storage.k8s.io", "storageclasses", None),
        right("list", SNAPSHOTS, "volumesnapshotclasses", None),
    ];
    // What `Cluster::around` lists.
    for namespace in clone.namespaces() {
        let here = || Some(namespace.to_owned());
        rights.extend([
            right("list", "", "persistentvolumeclaims", here()),
            right("list", "", "pods", here()),
            right("list", "", "events", here()),
            right("list", SNAPSHOTS, "volumesnapshots", here()),
        ]);
    }
    if clone.is_cross_namespace() {
        let away = Some(clone.source_namespace().to_owned());
        let group = "gateway.networking.k8s.io";
        rights.push(right("list", group, "referencegrants", away));
    }
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

/// What the storage class has to say that is to make the target's volume, where one is.
fn classes<'a>(
    view: &'a View,
    clone: &VolumeClone,
    found: &mut Diagnosis,
) -> Option<&'a StorageClass> {
    let target = view.target_claim.as_ref();
    if target.is_some_and(claims::is_bound) {
        found.note(Verdict::Fine, "storage class", "the target has its volume");
        return None;
    }
    let template = clone.spec.target.claim_template.as_ref();
    let named = target
        .and_then(|claim| claim.spec.as_ref()?.storage_class_name.as_deref())
        .or_else(|| template.and_then(|template| template.spec.storage_class_name.as_deref()));
    let class = storage_class(&view.around, named);
    let (verdict, text) = match class {
        Some(class) => {
            let mode = class.volume_binding_mode.as_deref().unwrap_or("Immediate");
            let text = format!("{}: {}, {mode}", class.name_any(), class.provisioner);
            (Verdict::Fine, text)
        }
        None => {
            let shown = named.unwrap_or("the default one");
            let text = format!("there is none like {shown}; name another by --storage-class");
            (Verdict::Wrong, text)
        }
    };
    found.note(verdict, "storage class", text);
    class
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
            // A pod may come any time, and is for somebody else to start.
            let waits_for_pod = held.reason == Reason::WaitsForConsumer.label();
            let verdict = if waits_for_pod {
                Verdict::Unsure
            } else {
                Verdict::Wrong
            };
            found.note(verdict, "way", text);
        }
        (None, Some(strategy)) => found.note(Verdict::Fine, "way", format!("{strategy:?}")),
        (None, None) => found.note(Verdict::Unsure, "way", "not known"),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, ResourceQuota};
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::nodes::of_nodes;
    use super::trial::{needs, of_quota};
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
        world(
            clone,
            settings,
            (Users::default(), around),
            None,
            Timestamp::UNIX_EPOCH,
        )
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
    fn a_wait_for_the_first_pod_is_told_as_such() {
        let mut world = start(Vec::new());
        world.clone.spec.source.namespace = None;
        let around = world.surroundings.as_mut().unwrap();
        around.source_volume = Some(of(json!({"metadata": {"name": "pv"},
            "spec": {"csi": {"driver": "d.io", "volumeHandle": "h"}}})));
        around.storage_classes = vec![of(json!({
            "metadata": {"name": "own",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "d.io", "volumeBindingMode": "WaitForFirstConsumer",
        }))];
        let mut found = Diagnosis::default();
        judge(&rehearse(world), &mut found);
        assert!(found.is_hopeful(), "{found:?}");
        let text = found.render();
        assert!(text.starts_with("?   way"), "{text}");
        assert!(text.contains("start one that mounts it"), "{text}");
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
