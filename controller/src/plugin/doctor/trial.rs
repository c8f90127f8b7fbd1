//! What the API server and the quotas would say of what would be made.

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::rehearsal::Rehearsal;
use super::{Diagnosis, Finding, Verdict, dry_run};
use crate::claims;
use crate::objects::Object;
use crate::plugin::in_words;

/// Has the API server say what it would of `object`: quotas, policies, Pod Security.
pub(super) async fn try_out(client: &Client, object: &Object, found: &mut Diagnosis) {
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
pub(super) async fn quotas(client: &Client, rehearsal: &Rehearsal, found: &mut Diagnosis) {
    for namespace in rehearsal.clone.namespaces() {
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
pub(super) fn needs(objects: &[Object], namespace: &str) -> [(&'static str, u64); 3] {
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

/// Whether a quota leaves room.
pub(super) fn of_quota(quota: &ResourceQuota, namespace: &str, needs: &[(&str, u64)]) -> Finding {
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
