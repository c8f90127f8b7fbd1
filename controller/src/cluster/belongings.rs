//! What was made for a clone, as it is known or as it is now: by its names, in the namespaces of both ends.

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};

use super::{Cluster, Result, call, known, resource_of};
use crate::api::VolumeClone;
use crate::names::{CLONE_LABEL, End, name, prime_name, selector};
use crate::world::{Belonging, Kind};

impl Cluster {
    /// The agents' pods of a clone, in both namespaces, as far as they are known.
    pub(crate) fn agent_pods(&self, clone: &VolumeClone) -> Vec<Pod> {
        let pods = End::ALL.into_iter().filter_map(|end| {
            let pods = &self.cache.pods;
            let pod = pods.get(end.namespace(clone), &name(clone, end))?;
            pod.agent.as_deref().cloned()
        });
        pods.filter(|pod| is_of(&pod.metadata, clone)).collect()
    }

    /// The agents' pods of a clone, in both namespaces, as they are now.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn agent_pods_now(&self, clone: &VolumeClone) -> Result<Vec<Pod>> {
        let mut found = Vec::new();
        for namespace in clone.namespaces() {
            let pods: Api<Pod> = self.namespaced(namespace);
            let params = ListParams::default().labels(&selector(clone));
            let what = || format!("listing the agents' pods in {namespace}");
            let mut listed = call(what, pods.list(&params)).await?.items;
            listed.retain(|pod| {
                let is_at = |end: &End| {
                    end.namespace(clone) == namespace && pod.name_any() == name(clone, *end)
                };
                End::ALL.iter().any(is_at)
            });
            found.extend(listed);
        }
        Ok(found)
    }

    /// What else was made for a clone, as far as it is known; no Secrets.
    pub(crate) fn belongings(&self, clone: &VolumeClone) -> Vec<Belonging> {
        let known = places(clone)
            .into_iter()
            .filter_map(|(kind, namespace, name)| {
                let metadata = self.known_metadata(kind, namespace, &name)?;
                is_of(&metadata, clone).then(|| belonging(kind, namespace, metadata))
            });
        known.collect()
    }

    /// The Secrets of a clone. They are not watched: that would take the right to read them all.
    ///
    /// # Errors
    /// When a call fails.
    pub(crate) async fn secret_belongings(&self, clone: &VolumeClone) -> Result<Vec<Belonging>> {
        let mut found = Vec::new();
        for namespace in clone.namespaces() {
            let secrets = self.secrets(namespace, clone).await?.into_iter();
            found.extend(secrets.map(|secret| belonging(Kind::Secret, namespace, secret)));
        }
        Ok(found)
    }

    /// What else was made for a clone, in both namespaces, as it is now.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn belongings_now(&self, clone: &VolumeClone) -> Result<Vec<Belonging>> {
        let places = places(clone);
        let mut found = Vec::new();
        for namespace in clone.namespaces() {
            for kind in Kind::ALL {
                let of_kind = match kind {
                    Kind::Pod => continue,
                    Kind::Secret => self.secrets(namespace, clone).await?,
                    _ => self.list_metadata(kind, namespace, clone).await?,
                };
                // Labels are copied together with what bears them: only names tell what is ours.
                let of_kind = of_kind.into_iter().filter(|metadata| {
                    let is_it = |(of, at, name): &(Kind, &str, String)| {
                        *of == kind && *at == namespace && metadata.name.as_ref() == Some(name)
                    };
                    places.iter().any(is_it)
                });
                found.extend(of_kind.map(|metadata| belonging(kind, namespace, metadata)));
            }
        }
        Ok(found)
    }

    async fn list_metadata(
        &self,
        kind: Kind,
        namespace: &str,
        clone: &VolumeClone,
    ) -> Result<Vec<ObjectMeta>> {
        let client = self.client.clone();
        let objects: Api<DynamicObject> =
            Api::namespaced_with(client, namespace, &resource_of(kind));
        let params = ListParams::default().labels(&selector(clone));
        let what = || format!("listing each {} in {namespace}", kind.label());
        // A cluster without snapshots doesn't know the kind.
        let list = known(call(what, objects.list_metadata(&params)).await)?;
        let list = list.into_iter().flat_map(|list| list.items);
        Ok(list.map(|object| object.metadata).collect())
    }

    /// The Secrets of a clone, by their names: to list Secrets would take the right to read them all.
    async fn secrets(&self, namespace: &str, clone: &VolumeClone) -> Result<Vec<ObjectMeta>> {
        let api: Api<Secret> = self.namespaced(namespace);
        let mut found = Vec::new();
        for end in End::ALL {
            let name = name(clone, end);
            if end.namespace(clone) == namespace {
                let what = || format!("looking for Secret {namespace}/{name}");
                found.extend(call(what, api.get_metadata_opt(&name)).await?);
            }
        }
        Ok(found.into_iter().map(|secret| secret.metadata).collect())
    }
}

/// Where what is made for `clone` can be, Secrets and pods too.
fn places(clone: &VolumeClone) -> Vec<(Kind, &str, String)> {
    let (home, away) = (clone.target_namespace(), clone.source_namespace());
    let (of_source, of_target) = (name(clone, End::Source), name(clone, End::Target));
    let prime = prime_name(clone);
    let mut places = vec![
        (Kind::Snapshot, away, of_source.clone()),
        (Kind::Claim, away, of_source.clone()),
        (Kind::Claim, home, prime.clone()),
        (Kind::Claim, home, clone.target_claim().to_owned()),
        (Kind::Secret, away, of_source.clone()),
        (Kind::Secret, home, of_target.clone()),
        (Kind::NetworkPolicy, away, of_source),
        (Kind::NetworkPolicy, home, of_target.clone()),
        (Kind::ConfigMap, home, of_target),
    ];
    if home != away {
        places.push((Kind::Claim, away, prime));
    }
    places
}

/// Whether an object bears the label of `clone`.
fn is_of(metadata: &ObjectMeta, clone: &VolumeClone) -> bool {
    let labels = metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(CLONE_LABEL));
    label.is_some_and(|uid| uid == clone.uid())
}

fn belonging(kind: Kind, namespace: &str, metadata: ObjectMeta) -> Belonging {
    Belonging {
        kind,
        namespace: namespace.to_owned(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        is_deleting: metadata.deletion_timestamp.is_some(),
    }
}
