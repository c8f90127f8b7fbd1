//! What Kubernetes publishes of its kinds, and our own definition, as a strict reader of objects: a field
//! that the schema doesn't know is a fault, and so are a wrong type and a field that is missing.
//!
//! Words that only the API server's code checks (what a restart policy may be called) are not in the
//! schemas, and rules of definitions are not evaluated here.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, authorization::v1 as authorization,
    batch::v1 as batch, coordination::v1 as coordination, core::v1 as core, events::v1 as events,
    networking::v1 as networking, policy::v1 as policy, rbac::v1 as rbac,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::CustomResourceExt;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};
use volferry_controller::api::VolumeClone;

/// Kinds of others, whose definitions are no part of Kubernetes. Of these the metadata is checked.
const OF_OTHERS: [(&str, &str); 7] = [
    ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant"),
    ("kustomize.config.k8s.io/v1alpha1", "Component"),
    ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("populator.storage.k8s.io/v1beta1", "VolumePopulator"),
    ("snapshot.storage.k8s.io/v1", "VolumeSnapshot"),
];

/// Schemas by version and kind, and what they refer to.
struct Published {
    kinds: BTreeMap<(String, String), Value>,
    metadata: Value,
    definitions: Value,
}

static PUBLISHED: LazyLock<Published> = LazyLock::new(|| {
    let mut published = Collection::default();
    published.add::<admission::ValidatingAdmissionPolicy>();
    published.add::<admission::ValidatingAdmissionPolicyBinding>();
    published.add::<apps::Deployment>();
    published.add::<authorization::SelfSubjectAccessReview>();
    published.add::<batch::Job>();
    published.add::<coordination::Lease>();
    published.add::<core::ConfigMap>();
    published.add::<core::Namespace>();
    published.add::<core::PersistentVolumeClaim>();
    published.add::<core::Pod>();
    published.add::<core::ResourceQuota>();
    published.add::<core::Secret>();
    published.add::<core::Service>();
    published.add::<core::ServiceAccount>();
    published.add::<events::Event>();
    published.add::<networking::NetworkPolicy>();
    published.add::<policy::PodDisruptionBudget>();
    published.add::<rbac::ClusterRole>();
    published.add::<rbac::ClusterRoleBinding>();
    published.add::<rbac::Role>();
    published.add::<rbac::RoleBinding>();
    published.add::<CustomResourceDefinition>();
    published.finish()
});

/// Schemas on their way to be [`Published`].
#[derive(Default)]
struct Collection {
    generator: SchemaGenerator,
    kinds: BTreeMap<(String, String), Value>,
}

impl Collection {
    fn add<T: JsonSchema + k8s_openapi::Resource>(&mut self) {
        let kind = (T::API_VERSION.to_owned(), T::KIND.to_owned());
        let schema = self.generator.subschema_for::<T>().to_value();
        self.kinds.insert(kind, schema);
    }

    /// Adds our own kind; what all kinds have is not in a definition.
    fn finish(mut self) -> Published {
        let metadata = self.generator.subschema_for::<ObjectMeta>().to_value();
        let definition = serde_json::to_value(VolumeClone::crd()).unwrap();
        let mut schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        for name in ["apiVersion", "kind"] {
            schema["properties"][name] = json!({"type": "string"});
        }
        schema["properties"]["metadata"] = metadata.clone();
        let kind = ("volferry.io/v1alpha1".to_owned(), "VolumeClone".to_owned());
        self.kinds.insert(kind, schema);
        Published {
            kinds: self.kinds,
            metadata,
            definitions: Value::Object(self.generator.take_definitions(true)),
        }
    }
}

/// What is wrong with `object`, each with its place.
pub(crate) fn faults(object: &Value) -> Vec<String> {
    let word = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let kind = (word("apiVersion"), word("kind"));
    let mut faults = Vec::new();
    match PUBLISHED.kinds.get(&kind) {
        Some(schema) => walk("", object, schema, &mut faults),
        None if OF_OTHERS.contains(&(&kind.0, &kind.1)) => {
            let at = ".metadata";
            walk(at, &object["metadata"], &PUBLISHED.metadata, &mut faults);
        }
        None => faults.push(format!("nobody here knows {} {}", kind.0, kind.1)),
    }
    faults
}

fn walk(at: &str, value: &Value, schema: &Value, faults: &mut Vec<String>) {
    // As the API server has it, null is absent.
    if value.is_null() {
        return;
    }
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        let schema = &PUBLISHED.definitions[name];
        assert!(schema.is_object(), "{at}: {name} is not defined");
        if name.ends_with(".v1.JSON") {
            // Any value, though it is published as an object.
            return;
        }
        return walk(at, value, schema, faults);
    }
    let mut check = |holds: bool, expected: &str| {
        if !holds {
            faults.push(format!("{at} is {value}, not {expected}"));
        }
    };
    if schema["x-kubernetes-int-or-string"] == true {
        return check(value.is_string() || value.is_i64(), "a number or text");
    }
    if let Some(words) = schema["enum"].as_array() {
        check(words.contains(value), "one of its words");
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64()) {
        check(number >= least, "that large");
    }
    if let (Some(most), Some(number)) = (schema["maximum"].as_f64(), value.as_f64()) {
        check(number <= most, "that small");
    }
    let format = schema["format"].as_str();
    match schema["type"].as_str() {
        Some("object") => match value.as_object() {
            Some(_) => walk_fields(at, value, schema, faults),
            None => check(false, "an object"),
        },
        Some("array") => match value.as_array() {
            Some(items) => {
                for (index, item) in items.iter().enumerate() {
                    walk(&format!("{at}[{index}]"), item, &schema["items"], faults);
                }
            }
            None => check(false, "a list"),
        },
        Some("string") => {
            check(value.is_string(), "text");
            let time = value.as_str().filter(|_| format == Some("date-time"));
            check(
                time.is_none_or(|time| time.parse::<Timestamp>().is_ok()),
                "a time",
            );
        }
        Some("integer") => {
            let number = value.as_i64();
            let fits = |number| format != Some("int32") || i32::try_from(number).is_ok();
            check(number.is_some_and(fits), "a whole number that fits");
        }
        Some("number") => check(value.is_number(), "a number"),
        Some("boolean") => check(value.is_boolean(), "true or false"),
        Some(other) => panic!("{at}: nobody here checks {other}"),
        None => {}
    }
}

fn walk_fields(at: &str, value: &Value, schema: &Value, faults: &mut Vec<String>) {
    let (known, others) = (&schema["properties"], &schema["additionalProperties"]);
    let is_free = (known.is_null() && others.is_null())
        || *others == true
        || schema["x-kubernetes-preserve-unknown-fields"] == true;
    for (key, field) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{key}");
        match known.get(key) {
            Some(schema) => walk(&at, field, schema, faults),
            None if others.is_object() => walk(&at, field, others, faults),
            None if is_free => {}
            None => faults.push(format!("{at} is no field")),
        }
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().unwrap();
        // What has a default is filled in before it is looked at.
        if value[name].is_null() && known[name]["default"].is_null() {
            faults.push(format!("{at}.{name} is missing"));
        }
    }
}
