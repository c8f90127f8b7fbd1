//! Where the agents could run: nodes that take pods, and what pods and volumes ask of them.
//!
//! As a scheduler sees it, but for what other pods take and want there: that is of the moment.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, Pod, PodSpec, Taint,
    Toleration,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::{Diagnosis, Finding, Verdict};
use crate::names::{END_LABEL, End};
use crate::plugin::in_words;

/// Names that are told at most.
const SHOWN_MAX: usize = 5;

/// What something asks of the node of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Demand {
    /// What asks.
    by: String,
    /// One of these has to hold.
    terms: Vec<NodeSelectorTerm>,
}

impl Demand {
    /// What a volume asks that is there: a local one for its node, others for a zone.
    pub(super) fn of_volume(volume: &PersistentVolume) -> Option<Self> {
        let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
        Some(Self {
            by: format!("volume {}", volume.name_any()),
            terms: affinity.required.as_ref()?.node_selector_terms.clone(),
        })
    }

    /// What a class asks that is to make a volume.
    pub(super) fn of_class(class: &StorageClass) -> Option<Self> {
        let topologies = class.allowed_topologies.as_ref()?.iter();
        let terms = topologies.map(|topology| {
            let labels = topology.match_label_expressions.iter().flatten();
            term(labels.map(|label| one_of(&label.key, &label.values)))
        });
        Some(Self {
            by: format!("storage class {}", class.name_any()),
            terms: terms.collect(),
        })
    }

    /// What the pod itself asks.
    fn of_pod(spec: &PodSpec) -> Vec<Self> {
        let selector = spec.node_selector.as_ref();
        let selector = selector.map(|labels| Self {
            by: "agents.nodeSelector".to_owned(),
            terms: vec![term(
                labels
                    .iter()
                    .map(|(key, value)| one_of(key, std::slice::from_ref(value))),
            )],
        });
        let affinity = spec.affinity.as_ref();
        let affinity = affinity.and_then(|it| it.node_affinity.as_ref());
        let required = affinity.and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let affinity = required.map(|required| Self {
            by: "agents.affinity, or where a claim is already,".to_owned(),
            terms: required.node_selector_terms.clone(),
        });
        selector.into_iter().chain(affinity).collect()
    }

    fn holds(&self, node: &Node) -> bool {
        self.terms.iter().any(|term| {
            let expressions = term.match_expressions.iter().flatten();
            let fields = term.match_fields.iter().flatten();
            let label = |key: &str| node.labels().get(key).cloned();
            let field = |key: &str| (key == "metadata.name").then(|| node.name_any());
            let is_empty = term.match_expressions.iter().flatten().next().is_none()
                && term.match_fields.iter().flatten().next().is_none();
            // As Kubernetes has it, a term that says nothing holds for no node.
            !is_empty
                && expressions
                    .clone()
                    .all(|asked| meets(asked, label(&asked.key)))
                && fields.clone().all(|asked| meets(asked, field(&asked.key)))
        })
    }

    fn words(&self) -> String {
        let one = |asked: &NodeSelectorRequirement| {
            let values = asked.values.iter().flatten().cloned().collect::<Vec<_>>();
            format!("{} {} {}", asked.key, asked.operator, values.join(" "))
        };
        let all = |term: &NodeSelectorTerm| {
            let expressions = term.match_expressions.iter().flatten();
            let asked = expressions.chain(term.match_fields.iter().flatten());
            asked.map(one).collect::<Vec<_>>().join(" and ")
        };
        let terms: Vec<_> = self.terms.iter().map(all).collect();
        format!("{} asks for {}", self.by, terms.join(", or "))
    }
}

fn term(asked: impl Iterator<Item = NodeSelectorRequirement>) -> NodeSelectorTerm {
    NodeSelectorTerm {
        match_expressions: Some(asked.collect()),
        match_fields: None,
    }
}

fn one_of(key: &str, values: &[String]) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.to_owned(),
        operator: "In".to_owned(),
        values: Some(values.to_vec()),
    }
}

/// Whether what a node has is what is asked for.
fn meets(asked: &NodeSelectorRequirement, has: Option<String>) -> bool {
    let mut values = asked.values.iter().flatten();
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    match asked.operator.as_str() {
        "In" => has.is_some_and(|has| values.any(|value| *value == has)),
        "NotIn" => has.is_none_or(|has| values.all(|value| *value != has)),
        "Exists" => has.is_some(),
        "DoesNotExist" => has.is_none(),
        "Gt" => {
            matches!((number(has.as_ref()), number(values.next())), (Some(has), Some(than)) if has > than)
        }
        "Lt" => {
            matches!((number(has.as_ref()), number(values.next())), (Some(has), Some(than)) if has < than)
        }
        _ => false,
    }
}

/// Whether pods with these tolerations may run where this taint is.
fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    if taint.effect == "PreferNoSchedule" {
        return true;
    }
    tolerations.iter().any(|toleration| {
        let is_any = toleration.operator.as_deref() == Some("Exists");
        let key = toleration.key.as_deref().filter(|key| !key.is_empty());
        let effect = toleration.effect.as_deref().filter(|it| !it.is_empty());
        key.map_or(is_any, |key| key == taint.key)
            && effect.is_none_or(|effect| effect == taint.effect)
            && (is_any
                || toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default())
    })
}

/// The nodes, if they may be listed; tells whether any takes pods, and whether they have the image.
pub(super) async fn look(client: &Client, image: &str, found: &mut Diagnosis) -> Vec<Node> {
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.list(&ListParams::default()).await {
        Ok(nodes) => {
            found.findings.extend(of_nodes(&nodes.items, image));
            nodes.items
        }
        Err(error) => {
            let text = format!("not known: {}", in_words(error));
            found.note(Verdict::Unsure, "nodes", text);
            Vec::new()
        }
    }
}

/// Where each agent's pod could run. What its volume asks is in `volumes`, source and target.
pub(super) fn places<'a>(
    nodes: &[Node],
    pods: impl Iterator<Item = &'a Pod>,
    volumes: &[Option<Demand>; 2],
) -> Vec<Finding> {
    let open: Vec<_> = nodes.iter().filter(is_open).collect();
    if open.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut fitting = Vec::new();
    for pod in pods {
        let label = pod.labels().get(END_LABEL).map_or("", String::as_str);
        let ends = End::ALL.into_iter().zip(volumes);
        let mut volumes = ends.filter(|(end, _)| end.label() == label);
        let volume = volumes.next().and_then(|(_, volume)| volume.as_ref());
        let spec = pod.spec.clone().unwrap_or_default();
        let fits = fitting_nodes(&open, &spec, volume);
        let (verdict, text) = match &fits {
            Ok(fits) => {
                let shown = fits.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>();
                let more = if fits.len() > SHOWN_MAX { ", …" } else { "" };
                let text = format!(
                    "{} of {}: {}{more}",
                    fits.len(),
                    open.len(),
                    shown.join(", ")
                );
                (Verdict::Fine, text)
            }
            Err(why) => (Verdict::Wrong, why.clone()),
        };
        findings.push(Finding {
            verdict,
            what: format!("nodes for the {label}"),
            text,
        });
        fitting.extend(fits);
    }
    if let [one, other] = &fitting[..]
        && !one.iter().any(|node| other.contains(node))
    {
        findings.push(Finding {
            verdict: Verdict::Fine,
            what: "distance".to_owned(),
            text: "no node is for both agents: bytes travel from node to node".to_owned(),
        });
    }
    findings
}

/// The names of the nodes that a pod fits, or what none of them has.
fn fitting_nodes(
    open: &[&Node],
    spec: &PodSpec,
    volume: Option<&Demand>,
) -> Result<Vec<String>, String> {
    let tolerations = spec.tolerations.clone().unwrap_or_default();
    let is_let_in = |node: &&Node| {
        let taints = node.spec.iter().flat_map(|spec| &spec.taints).flatten();
        taints
            .into_iter()
            .all(|taint| tolerates(&tolerations, taint))
    };
    let mut left = open.to_vec();
    left.retain(is_let_in);
    if left.is_empty() {
        return Err(format!(
            "each of {} nodes has a taint that agents.tolerations do not tolerate",
            open.len()
        ));
    }
    for demand in Demand::of_pod(spec).iter().chain(volume) {
        let before = left.len();
        left.retain(|node| demand.holds(node));
        if left.is_empty() {
            return Err(format!(
                "{}, and none of {before} nodes has that",
                demand.words()
            ));
        }
    }
    Ok(left.iter().map(|node| node.name_any()).collect())
}

/// Whether new pods may run there.
fn is_open(node: &&Node) -> bool {
    let spec = node.spec.as_ref();
    let is_closed = spec.is_some_and(|spec| spec.unschedulable == Some(true));
    let status = node.status.iter();
    let mut conditions = status.flat_map(|status| &status.conditions).flatten();
    !is_closed && conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Whether there are nodes for pods, and whether they have the image.
pub(super) fn of_nodes(nodes: &[Node], image: &str) -> [Finding; 2] {
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

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn node(name: &str, labels: &Value, taints: &Value) -> Node {
        of(json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))
    }

    fn nodes() -> Vec<Node> {
        let mut nodes = vec![
            node("a", &json!({"zone": "1", "disk": "fast"}), &json!([])),
            node("b", &json!({"zone": "2", "disk": "fast"}), &json!([])),
            node("c", &json!({"zone": "2"}), &json!([])),
            node(
                "d",
                &json!({"zone": "3"}),
                &json!([{"key": "gpu", "effect": "NoSchedule"}]),
            ),
            node("e", &json!({"zone": "3"}), &json!([])),
        ];
        nodes[4].spec.as_mut().unwrap().unschedulable = Some(true);
        nodes
    }

    fn pod(end: &str, spec: &Value) -> Pod {
        let mut pod = json!({"metadata": {"labels": {END_LABEL: end}}, "spec": spec});
        pod["spec"]["containers"] = json!([]);
        of(pod)
    }

    fn volume(required: &Value) -> Option<Demand> {
        Demand::of_volume(&of(json!({
            "metadata": {"name": "pv"},
            "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": required}}},
        })))
    }

    fn in_zone(operator: &str, values: &Value) -> Value {
        json!([{"matchExpressions": [{"key": "zone", "operator": operator, "values": values}]}])
    }

    #[test]
    fn an_agent_fits_where_its_pod_and_its_volume_do() {
        let check = |spec: Value, volume: Option<Demand>, expected: Result<&str, &str>| {
            let pods = [pod("target", &spec)];
            let found = places(&nodes(), pods.iter(), &[None, volume]);
            let found = &found[0];
            assert_eq!(found.what, "nodes for the target");
            let (verdict, words) = match expected {
                Ok(words) => (Verdict::Fine, words),
                Err(words) => (Verdict::Wrong, words),
            };
            assert_eq!((found.verdict, &*found.text), (verdict, words));
        };
        let any = json!({});
        check(any.clone(), None, Ok("3 of 4: a, b, c"));
        let tolerant = json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]});
        check(tolerant, None, Ok("4 of 4: a, b, c, d"));
        check(
            json!({"nodeSelector": {"disk": "fast"}}),
            None,
            Ok("2 of 4: a, b"),
        );
        check(
            json!({"nodeSelector": {"disk": "slow"}}),
            None,
            Err("agents.nodeSelector asks for disk In slow, and none of 3 nodes has that"),
        );
        check(
            any.clone(),
            volume(&in_zone("In", &json!(["2"]))),
            Ok("2 of 4: b, c"),
        );
        check(
            any.clone(),
            volume(&in_zone("NotIn", &json!(["2"]))),
            Ok("1 of 4: a"),
        );
        check(
            any.clone(),
            volume(&in_zone("Gt", &json!(["1"]))),
            Ok("2 of 4: b, c"),
        );
        check(
            any.clone(),
            volume(&in_zone("Exists", &json!([]))),
            Ok("3 of 4: a, b, c"),
        );
        // A local volume of a node that takes no pods.
        let local = in_zone("In", &json!(["3"]));
        check(
            any.clone(),
            volume(&local),
            Err("volume pv asks for zone In 3, and none of 3 nodes has that"),
        );
        check(
            any.clone(),
            volume(&json!([{}])),
            Err("volume pv asks for , and none of 3 nodes has that"),
        );
        check(
            json!({"nodeSelector": {"disk": "fast"}}),
            volume(
                &json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}]}]),
            ),
            Err("volume pv asks for metadata.name In c, and none of 2 nodes has that"),
        );
        let class = Demand::of_class(&of(json!({
            "metadata": {"name": "own"}, "provisioner": "d.io",
            "allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["1", "3"]}]}],
        })));
        check(any, class, Ok("1 of 4: a"));
    }

    #[test]
    fn agents_that_can_share_no_node_are_told_so() {
        let distance = |pinned: &str| {
            let pinned = json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [pinned]}]}]}}}});
            let pods = [pod("target", &json!({})), pod("source", &pinned)];
            let of_target = volume(&in_zone("In", &json!(["2"])));
            let found = places(&nodes(), pods.iter(), &[None, of_target]);
            found.iter().any(|found| found.what == "distance")
        };
        assert!(distance("a"));
        assert!(!distance("b"));
    }

    #[test]
    fn taints_are_tolerated_as_kubernetes_does() {
        let taint = |effect: &str| of(json!({"key": "k", "value": "v", "effect": effect}));
        let check = |toleration: Value, expected: bool| {
            let toleration = [of(toleration)];
            assert_eq!(
                tolerates(&toleration, &taint("NoSchedule")),
                expected,
                "{toleration:?}"
            );
        };
        check(json!({"operator": "Exists"}), true);
        check(json!({"key": "k", "operator": "Exists"}), true);
        check(json!({"key": "k", "value": "v"}), true);
        check(
            json!({"key": "k", "value": "v", "effect": "NoExecute"}),
            false,
        );
        check(json!({"key": "k"}), false);
        check(json!({"key": "other", "operator": "Exists"}), false);
        assert!(!tolerates(&[], &taint("NoExecute")));
        assert!(tolerates(&[], &taint("PreferNoSchedule")));
    }
}
