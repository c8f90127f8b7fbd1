//! The Helm chart in deploy/chart, made from the manifests that kustomize takes: one place says what is
//! installed. Templates are those manifests with some values taken out, and nothing else.

use std::fs;

use crate::{Chore, Outcome, root};

/// Where the chart is.
pub(crate) const CHART: &str = "deploy/chart";

/// A text that is taken out of a manifest, and what Helm puts in its place.
type Hole = (&'static str, &'static str);

const DEPLOYMENT: &[Hole] = &[
    (
        "      enableServiceLinks: false\n",
        "      enableServiceLinks: false\n      \
         imagePullSecrets: {{ .Values.imagePullSecrets | toJson }}\n      \
         priorityClassName: {{ .Values.priorityClassName | toJson }}\n      \
         nodeSelector: {{ .Values.nodeSelector | toJson }}\n      \
         tolerations: {{ .Values.tolerations | toJson }}\n      \
         affinity: {{ .Values.affinity | toJson }}\n",
    ),
    ("replicas: 2\n", "replicas: {{ .Values.replicas }}\n"),
    (
        "image: volferry:latest\n",
        "image: {{ .Values.image | quote }}\n",
    ),
    (
        "imagePullPolicy: IfNotPresent\n",
        "imagePullPolicy: {{ .Values.imagePullPolicy }}\n",
    ),
    (
        "--image=volferry:latest\n",
        "--image={{ .Values.image }}\n            \
         - --image-pull-policy={{ .Values.imagePullPolicy }}\n            \
         - --clones-max={{ .Values.limits.clones }}\n            \
         - --clones-per-namespace-max={{ .Values.limits.clonesPerNamespace }}\n            \
         - --clones-per-node-max={{ .Values.limits.clonesPerNode }}\n",
    ),
    (
        RESOURCES,
        "          resources:\n            {{- toYaml .Values.resources | nindent 12 }}\n",
    ),
];

const RESOURCES: &str = "          resources:
            requests:
              cpu: 50m
              memory: 64Mi
            limits:
              memory: 256Mi
";

const RBAC: &[Hole] = &[(
    "namespace: volferry-system\n",
    "namespace: {{ .Release.Namespace | quote }}\n",
)];

const MONITORED_FROM: &[Hole] = &[(
    "kubernetes.io/metadata.name: monitoring\n",
    "kubernetes.io/metadata.name: {{ .Values.monitoring.namespace | quote }}\n",
)];

/// Prometheus' operator takes what bears the labels that it was told to look for.
const LABELLED: &[Hole] = &[(
    "  name: volferry-controller\nspec:\n",
    "  name: volferry-controller\n  labels: {{ .Values.monitoring.labels | toJson }}\nspec:\n",
)];

/// The value by which monitoring is wanted.
const MONITORING: Option<&str> = Some("monitoring.enabled");

/// A manifest, the template that it becomes, the value without which it is left out, and what is taken out.
const TEMPLATES: &[(&str, &str, Option<&str>, &[Hole])] = &[
    ("deploy/base/rbac.yaml", "rbac.yaml", None, RBAC),
    (
        "deploy/base/deployment.yaml",
        "deployment.yaml",
        None,
        DEPLOYMENT,
    ),
    (
        "deploy/base/networkpolicy.yaml",
        "networkpolicy.yaml",
        None,
        &[],
    ),
    (
        "deploy/monitoring/podmonitor.yaml",
        "podmonitor.yaml",
        MONITORING,
        LABELLED,
    ),
    (
        "deploy/monitoring/rules.yaml",
        "rules.yaml",
        MONITORING,
        LABELLED,
    ),
    (
        "deploy/monitoring/networkpolicy.yaml",
        "networkpolicy-metrics.yaml",
        MONITORING,
        MONITORED_FROM,
    ),
    (
        "deploy/populator/volumepopulator.yaml",
        "volumepopulator.yaml",
        Some("volumePopulator"),
        &[],
    ),
];

/// Files that the chart has as they are.
const COPIES: &[(&str, &str)] = &[
    ("deploy/crd/volumeclones.yaml", "crds/volumeclones.yaml"),
    ("deploy/monitoring/dashboard.json", "dashboard.json"),
];

const VALUES: &str = "\
# Where the cluster finds the image that deploy/images/build made: the controller's own, and the agents'.
image: volferry:latest
imagePullPolicy: IfNotPresent

# One leads, the others take over.
replicas: 2

# Of the controller's pods. Agents have theirs from spec.agents of each VolumeClone.
imagePullSecrets: []
priorityClassName: ''
nodeSelector: {}
tolerations: []
affinity: {}

# Clones by agents at once: in the cluster, of these with their target in one namespace, and with an agent on one node.
limits:
  clones: 32
  clonesPerNamespace: 8
  clonesPerNode: 8

# Of the controller. Agents have theirs from spec.agents.resources of each VolumeClone.
resources:
  requests:
    cpu: 50m
    memory: 64Mi
  limits:
    memory: 256Mi

# For clusters with the volume data source validator: tells it that claims may refer to VolumeClones.
volumePopulator: false

# For clusters with the Prometheus operator: scraping, alerts, and a ConfigMap with the dashboard for Grafana.
monitoring:
  enabled: false
  # The namespace that Prometheus runs in.
  namespace: monitoring
  # What Prometheus selects PodMonitors and PrometheusRules by, such as release: NAME.
  labels: {}
";

const DASHBOARD: &str = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: volferry-dashboard
  labels:
    grafana_dashboard: \"1\"
data:
  dashboard.json: |
    {{- .Files.Get \"dashboard.json\" | nindent 4 }}
";

const MADE: &str = "# Made by cargo xtask helm.\n";

/// Writes the chart.
pub(crate) fn run() -> Chore {
    let read = |path: &str| fs::read_to_string(root().join(path)).ok();
    for (path, text) in chart(&read)? {
        let path = root().join(path);
        let failed = |error| format!("{}: {error}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        fs::write(&path, text).map_err(failed)?;
    }
    Ok(Outcome::Ran)
}

/// Every file of the chart, by its path from the root. `read` gives the manifests.
pub(crate) fn chart(
    read: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, String> {
    let text = |path: &str| read(path).ok_or_else(|| format!("{path} can't be read"));
    let version = env!("CARGO_PKG_VERSION");
    let about = format!(
        "{MADE}apiVersion: v2\nname: volferry\ndescription: Clones Kubernetes volumes, and proves the clones\n\
         type: application\nversion: {version}\nappVersion: \"{version}\"\nkubeVersion: \">=1.33.0-0\"\n"
    );
    let only_with = |value: Option<&str>, text: String| match value {
        Some(value) => format!("{{{{- if .Values.{value} }}}}\n{text}{{{{- end }}}}\n"),
        None => text,
    };
    let mut files = vec![
        ("Chart.yaml".to_owned(), about),
        ("values.yaml".to_owned(), format!("{MADE}{VALUES}")),
        (
            "templates/dashboard.yaml".to_owned(),
            only_with(MONITORING, DASHBOARD.to_owned()),
        ),
    ];
    for (from, to, wanted_by, holes) in TEMPLATES {
        let mut template = text(from)?;
        // Helm would take it for its own.
        if template.contains("{{") {
            return Err(format!("{from} has {{{{ in it, which Helm would read"));
        }
        for (given, hole) in *holes {
            if !template.contains(given) {
                return Err(format!(
                    "{from} has no longer {given:?}; xtask/src/helm.rs takes that out"
                ));
            }
            template = template.replace(given, hole);
        }
        files.push((format!("templates/{to}"), only_with(*wanted_by, template)));
    }
    for (from, to) in COPIES {
        files.push(((*to).to_owned(), text(from)?));
    }
    let within = |(path, text)| (format!("{CHART}/{path}"), text);
    Ok(files.into_iter().map(within).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Option<String> {
        fs::read_to_string(root().join(path)).ok()
    }

    /// What Helm makes of a template with the chart's own values, as far as templates go here.
    fn render(template: &str, chart: &[(String, String)]) -> String {
        let values: &[(&str, &str)] = &[
            ("{{ .Values.replicas }}", "2"),
            ("{{ .Values.image | quote }}", "volferry:latest"),
            ("{{ .Values.image }}", "volferry:latest"),
            ("{{ .Values.imagePullPolicy }}", "IfNotPresent"),
            ("{{ .Values.limits.clones }}", "32"),
            ("{{ .Values.limits.clonesPerNamespace }}", "8"),
            ("{{ .Values.limits.clonesPerNode }}", "8"),
            ("{{ .Values.monitoring.namespace | quote }}", "monitoring"),
            ("{{ .Release.Namespace | quote }}", "volferry-system"),
            ("{{ .Values.imagePullSecrets | toJson }}", "[]"),
            ("{{ .Values.priorityClassName | toJson }}", "''"),
            ("{{ .Values.nodeSelector | toJson }}", "{}"),
            ("{{ .Values.tolerations | toJson }}", "[]"),
            ("{{ .Values.affinity | toJson }}", "{}"),
            ("{{ .Values.monitoring.labels | toJson }}", "{}"),
            ("{{- if .Values.monitoring.enabled }}\n", ""),
            ("{{- if .Values.volumePopulator }}\n", ""),
            ("{{- end }}\n", ""),
        ];
        let mut text = template.to_owned();
        for (hole, value) in values {
            text = text.replace(hole, value);
        }
        let (_, values) = &chart[1];
        let resources = values.split_once("resources:\n").unwrap().1;
        let resources = resources.split("\n\n").next().unwrap();
        let indented: Vec<_> = resources
            .lines()
            .map(|line| format!("{}{line}", " ".repeat(10)))
            .collect();
        let hole = "\n            {{- toYaml .Values.resources | nindent 12 }}";
        text.replace(hole, &format!("\n{}", indented.join("\n")))
    }

    #[test]
    fn the_charts_own_values_give_the_manifests_back() {
        let chart = chart(&read).unwrap();
        for (from, to, ..) in TEMPLATES {
            let (_, template) = chart
                .iter()
                .find(|(path, _)| path.ends_with(&format!("/templates/{to}")))
                .unwrap();
            let rendered = render(template, &chart);
            assert!(!rendered.contains("{{"), "{to}: {rendered}");
            // Defaults, which a manifest need not name.
            let defaults = [
                "- --image-pull-policy=IfNotPresent",
                "- --clones-max=32",
                "- --clones-per-namespace-max=8",
                "- --clones-per-node-max=8",
                "imagePullSecrets: []",
                "priorityClassName: ''",
                "nodeSelector: {}",
                "tolerations: []",
                "affinity: {}",
                "labels: {}",
            ];
            let kept = rendered
                .lines()
                .filter(|line| !defaults.contains(&line.trim()));
            let kept: Vec<_> = kept.collect();
            let given = read(from).unwrap();
            assert_eq!(kept, given.lines().collect::<Vec<_>>(), "{from}");
        }
        // A value that is not there is nothing to Helm, and no error.
        let templates = chart
            .iter()
            .filter(|(path, _)| path.contains("/templates/"));
        for (path, template) in templates {
            for used in template.split(".Values.").skip(1) {
                let name = used.split(|char: char| !char.is_ascii_alphanumeric());
                let name = name.take(1).collect::<String>();
                assert!(chart[1].1.contains(&format!("\n{name}:")), "{path}: {name}");
            }
        }
    }

    #[test]
    fn a_manifest_that_changed_its_form_is_told() {
        let changed = |path: &str| {
            let text = read(path)?;
            Some(text.replace("replicas: 2", "replicas: 3"))
        };
        assert!(chart(&changed).unwrap_err().contains("replicas: 2"));
        assert!(chart(&|_path: &str| None).is_err());
    }
}
