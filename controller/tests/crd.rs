//! The definitions in deploy/crd are what the types say, and hold what users rely on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;

use kube::CustomResourceExt;
use serde::Serialize;
use serde_json::{Value, json};
use volferry_controller::api::{GROUP, Phase, VolumeClone};

/// Set by `cargo xtask crd`: write the files instead of comparing them.
const UPDATE: &str = "VOLFERRY_UPDATE_CRD";

/// Compares `object` with this file of deploy/, or writes it.
fn check_file(name: &str, object: &impl Serialize) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name);
    let text = format!(
        "# Made from controller/src/api.rs by `cargo xtask crd`. Don't edit.\n{}",
        serde_saphyr::to_string(object).unwrap()
    );
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "{} is stale; run `cargo xtask crd`",
        path.display()
    );
}

#[test]
fn the_definition_is_what_the_types_say() {
    check_file("crd/volumeclones.yaml", &VolumeClone::crd());
}

#[test]
fn the_populator_is_registered() {
    let registration = json!({
        "apiVersion": "populator.storage.k8s.io/v1beta1",
        "kind": "VolumePopulator",
        "metadata": {"name": "volumeclones.volferry.io"},
        "sourceKind": {"group": GROUP, "kind": "VolumeClone"},
    });
    check_file("populator/volumepopulator.yaml", &registration);
}

/// Walks the schema; `at` is the path so far.
fn walk(at: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(at, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{at}.{name}"), property, visit);
    }
    for nested in ["items", "additionalProperties"] {
        if schema[nested].is_object() {
            walk(&format!("{at}[]"), &schema[nested], visit);
        }
    }
}

fn schema() -> Value {
    let crd = serde_json::to_value(VolumeClone::crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[test]
fn every_field_is_explained() {
    let mut unexplained = Vec::new();
    walk("", &schema(), &mut |at, schema| {
        // Kubernetes' own types below these say what they say.
        let ours = ![
            "affinity",
            "resources",
            "tolerations",
            "claimTemplate.spec",
            "[]",
        ]
        .iter()
        .any(|foreign| at.contains(foreign));
        if ours && !at.is_empty() && schema["description"].as_str().is_none_or(str::is_empty) {
            unexplained.push(at.to_owned());
        }
    });
    assert_eq!(unexplained, Vec::<String>::new());
}

/// A spec that is right, with `change` merged over it.
fn object(change: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "volferry.io/v1alpha1",
        "kind": "VolumeClone",
        "metadata": {"name": "clone", "namespace": "home"},
        "spec": {
            "source": {"persistentVolumeClaim": {"name": "from"}},
            "target": {"persistentVolumeClaim": {"name": "to"}},
        },
    });
    merge(&mut object["spec"], change);
    object
}

/// RFC 7386: null removes.
fn merge(into: &mut Value, change: &Value) {
    let Value::Object(change) = change else {
        *into = change.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in change {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

/// What the rules say of making `new`, or of changing `old` to it.
fn refusals(new: &Value, old: Option<&Value>) -> Vec<String> {
    let errors = kube::core::cel::Validator::new()
        .validate(&schema(), new, old)
        .err();
    let errors = errors.iter().flat_map(|errors| errors.iter());
    errors.map(|error| error.message.clone()).collect()
}

#[test]
fn what_makes_no_sense_is_refused() {
    let check = |change: Value, expected: &str| {
        let refusals = refusals(&object(&change), None);
        let is_as_expected = match expected {
            "" => refusals.is_empty(),
            words => refusals.len() == 1 && refusals[0].contains(words),
        };
        assert!(is_as_expected, "{change}: {refusals:?}");
    };
    let snapshot = json!({"persistentVolumeClaim": null, "volumeSnapshot": {"name": "s"}});
    let template =
        json!({"persistentVolumeClaim": null, "claimTemplate": {"metadata": {"name": "t"}}});
    check(json!({}), "");
    check(json!({"source": snapshot}), "");
    check(json!({"target": template}), "");
    check(
        json!({"source": {"volumeSnapshot": {"name": "s"}}}),
        "not both",
    );
    check(
        json!({"source": {"persistentVolumeClaim": null}}),
        "not both",
    );
    check(
        json!({"target": {"claimTemplate": {"metadata": {"name": "t"}}}}),
        "one of the three",
    );
    check(
        json!({"target": {"persistentVolumeClaim": null}}),
        "one of the three",
    );
    let referring = json!({"persistentVolumeClaim": null, "referringClaims": true});
    check(json!({"target": referring}), "");
    check(
        json!({"target": {"referringClaims": true}}),
        "one of the three",
    );
    check(json!({"strategy": "HostAssisted"}), "");
    let to_itself = json!({"target": {"persistentVolumeClaim": {"name": "from"}}});
    check(to_itself.clone(), "to itself");
    let mut of_another = to_itself;
    of_another["source"] = json!({"namespace": "away"});
    check(of_another, "");
    check(json!({"strategy": "CsiClone", "target": referring}), "");
    check(json!({"strategy": "CsiClone", "target": template}), "");
    check(json!({"strategy": "Snapshot", "target": template}), "");
    check(
        json!({"strategy": "CsiClone", "source": snapshot, "target": template}),
        "a snapshot is restored",
    );
}

#[test]
fn what_is_under_way_stays_as_it_is() {
    let check = |old: Value, new: Value, expected: &str| {
        let refusals = refusals(&object(&new), Some(&object(&old)));
        let is_as_expected = match expected {
            "" => refusals.is_empty(),
            words => !refusals.is_empty() && refusals.iter().all(|refusal| refusal.contains(words)),
        };
        assert!(is_as_expected, "{old} -> {new}: {refusals:?}");
    };
    let unchanged = json!({});
    check(unchanged.clone(), json!({"suspend": true}), "");
    check(
        unchanged.clone(),
        json!({"backoffLimit": 9, "deadlineSeconds": 5}),
        "",
    );
    check(unchanged.clone(), json!({"ttlSecondsAfterFinished": 0}), "");
    check(unchanged.clone(), json!({"inUsePolicy": "Allow"}), "");
    let other_claim = json!({"source": {"persistentVolumeClaim": {"name": "other"}}});
    check(
        unchanged.clone(),
        other_claim,
        "the source can't be changed",
    );
    let other_namespace = json!({"source": {"namespace": "away"}});
    check(
        unchanged.clone(),
        other_namespace,
        "the source can't be changed",
    );
    let other_target = json!({"target": {"persistentVolumeClaim": {"name": "other"}}});
    check(
        unchanged.clone(),
        other_target,
        "the target can't be changed",
    );
    let template = |name: &str| json!({"target": {"persistentVolumeClaim": null, "claimTemplate": {"metadata": {"name": name}}}});
    check(
        unchanged.clone(),
        template("t"),
        "the target can't be changed",
    );
    check(
        unchanged.clone(),
        json!({"target": {"persistentVolumeClaim": null, "referringClaims": true}}),
        "the target can't be changed",
    );
    check(template("t"), template("t"), "");
    check(template("t"), template("u"), "the target can't be changed");
    let mut larger = template("t");
    larger["target"]["claimTemplate"]["spec"] =
        json!({"resources": {"requests": {"storage": "2Gi"}}});
    check(template("t"), larger, "the target can't be changed");
    check(
        unchanged.clone(),
        json!({"strategy": "HostAssisted"}),
        "the strategy can't be changed",
    );
    check(
        unchanged.clone(),
        json!({"verify": "Readback"}),
        "how the clone is verified",
    );
    check(
        unchanged.clone(),
        json!({"transport": {"protocol": "Quic"}}),
        "the protocol can't be changed",
    );
    check(unchanged.clone(), json!({"transport": {"streams": 2}}), "");
    check(
        unchanged,
        json!({"resume": "None"}),
        "what the clone goes on from",
    );
}

/// What alerts and dashboard ask for is told under these phases; that there are such metrics, tidy checks.
#[test]
fn alerts_and_dashboard_know_the_phases() {
    let phases = Phase::ALL.map(|phase| format!("{phase:?}"));
    for file in ["rules.yaml", "dashboard.json"] {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring");
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let text = text.replace("\\\"", "\"");
        let selected: Vec<_> = text.split("phase=\"").skip(1).collect();
        assert!(selected.len() >= 2, "{file}");
        for selected in selected {
            let phase = selected.split('"').next().unwrap();
            assert!(
                phases.iter().any(|known| known == phase),
                "{phase} in {file}"
            );
        }
    }
}

/// The definition's rules say nothing against the examples. That their fields are right, tests/manifests.rs
/// checks.
#[test]
fn the_examples_break_no_rule() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for object in objects
            .iter()
            .filter(|object| object["kind"] == "VolumeClone")
        {
            count += 1;
            assert_eq!(object["apiVersion"], "volferry.io/v1alpha1");
            // As the API server fills it in.
            let mut object = object.clone();
            let referring = &mut object["spec"]["target"]["referringClaims"];
            if referring.is_null() {
                *referring = json!(false);
            }
            serde_json::from_value::<VolumeClone>(object.clone()).unwrap();
            assert_eq!(
                refusals(&object, None),
                Vec::<String>::new(),
                "{}",
                path.display()
            );
        }
    }
    assert!(count >= 4, "{count}");
}
