//! Every manifest of deploy/ is what a strict API server would take, as far as schemas tell.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "cluster/published.rs"]
mod published;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::published::faults;

fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The YAML files below a folder.
fn manifests(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(manifests(&path));
        } else if path.extension().is_some_and(|it| it == "yaml") {
            found.push(path);
        }
    }
    found
}

fn objects(text: &str) -> Vec<Value> {
    // Kubernetes reads YAML 1.1, which has octal numbers.
    let text = text.replace(": 0440", ": 288");
    serde_saphyr::from_multiple(&text).unwrap()
}

/// What Helm makes of a template of the chart with the chart's own values, and monitoring.
fn render(chart: &Path, template: &str) -> String {
    let values = std::fs::read_to_string(chart.join("values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, hole)) = rest.split_once("{{") {
        let (hole, after) = hole.split_once("}}").unwrap();
        let trims = hole.starts_with('-');
        text.push_str(if trims { before.trim_end() } else { before });
        rest = after;
        let words: Vec<_> = hole.trim_start_matches('-').split_whitespace().collect();
        let value = |path: &str| {
            let path = path.strip_prefix(".Values.").unwrap();
            let value = path.split('.').fold(&values, |at, key| &at[key]);
            assert!(!value.is_null(), "no value {path}");
            value.clone()
        };
        let plain = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        match words[..] {
            ["if", _] | ["end"] => {}
            [".Release.Namespace", "|", "quote"] => text.push_str("\"volferry-system\""),
            [path] => text.push_str(&plain(value(path))),
            // Of YAML, JSON is a part.
            [path, "|", "quote" | "toJson"] => text.push_str(&value(path).to_string()),
            ["toYaml", path, "|", "nindent", _] => {
                text.push(' ');
                text.push_str(&value(path).to_string());
            }
            [".Files.Get", file, "|", "nindent", spaces] => {
                let file = std::fs::read_to_string(chart.join(file.trim_matches('"'))).unwrap();
                let indent = " ".repeat(spaces.parse().unwrap());
                for line in file.lines() {
                    text.push_str(&format!("\n{indent}{line}"));
                }
            }
            _ => panic!("nobody here renders {hole}"),
        }
    }
    text.push_str(rest);
    text
}

#[test]
fn every_manifest_fits_its_schema() {
    let deploy = deploy();
    let chart = deploy.join("chart");
    let mut count = 0;
    for path in manifests(&deploy) {
        let is_of_chart = path.starts_with(&chart);
        let is_for_helm = path.parent() == Some(&chart);
        if is_for_helm {
            continue;
        }
        let mut text = std::fs::read_to_string(&path).unwrap();
        if is_of_chart && text.contains("{{") {
            text = render(&chart, &text);
        }
        let objects = objects(&text);
        assert!(!objects.is_empty(), "{} holds nothing", path.display());
        for object in &objects {
            count += 1;
            assert_eq!(faults(object), Vec::<String>::new(), "{}", path.display());
        }
    }
    assert!(count >= 45, "{count}");
}

/// The first object of this kind in a file of deploy/.
fn object(file: &str, kind: &str) -> Value {
    let text = std::fs::read_to_string(deploy().join(file)).unwrap();
    let mut objects = objects(&text).into_iter();
    objects.find(|object| object["kind"] == kind).unwrap()
}

#[test]
fn a_manifest_that_is_broken_is_found() {
    let check = |file: &str, kind: &str, pointer: &str, broken: Value, expected: &str| {
        let mut object = object(file, kind);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = broken;
        assert_eq!(faults(&object), [expected], "{pointer}");
    };
    let deployment = |pointer: &str, broken: Value, expected: &str| {
        check(
            "base/deployment.yaml",
            "Deployment",
            pointer,
            broken,
            expected,
        );
    };
    let container = "/spec/template/spec/containers/0";
    let at = |field: &str| format!("{container}/{field}");
    deployment(
        &at("imagePullPolice"),
        json!("Always"),
        ".spec.template.spec.containers[0].imagePullPolice is no field",
    );
    deployment(
        "/spec/replicas",
        json!("two"),
        ".spec.replicas is \"two\", not a whole number that fits",
    );
    deployment(
        &at("name"),
        Value::Null,
        ".spec.template.spec.containers[0].name is missing",
    );
    deployment(
        &at("args"),
        json!("--one"),
        ".spec.template.spec.containers[0].args is \"--one\", not a list",
    );
    deployment(
        "/metadata/creationTimestamp",
        json!("yesterday"),
        ".metadata.creationTimestamp is \"yesterday\", not a time",
    );
    deployment(
        "/kind",
        json!("Deploiment"),
        "nobody here knows apps/v1 Deploiment",
    );
    let clone = |pointer: &str, broken: Value, expected: &str| {
        check(
            "examples/volumeclone.yaml",
            "VolumeClone",
            pointer,
            broken,
            expected,
        );
    };
    clone("/spec/verifi", json!("Digest"), ".spec.verifi is no field");
    clone(
        "/spec/strategy",
        json!("Fast"),
        ".spec.strategy is \"Fast\", not one of its words",
    );
    clone("/spec/source", Value::Null, ".spec.source is missing");
    clone(
        "/metadata/lables",
        json!({}),
        ".metadata.lables is no field",
    );
    check(
        "monitoring/podmonitor.yaml",
        "PodMonitor",
        "/metadata/labels",
        json!(["a"]),
        ".metadata.labels is [\"a\"], not an object",
    );
}
