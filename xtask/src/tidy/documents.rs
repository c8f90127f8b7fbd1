//! Names that users see are in the manuals, and what the manuals name exists.
//!
//! A name counts as documented where it stands in backticks outside a code block, however the table
//! or the sentence around it looks.

use std::collections::BTreeSet;

use super::{Findings, Tree};

const OPERATIONS: &str = "docs/operations.md";
const PROTOCOL: &str = "docs/protocol.md";
const KUBERNETES: &str = "docs/kubernetes.md";
const CONTROLLER: &str = "controller/src/main.rs";

const AGENT_FLAGS: [&str; 4] = [
    "agent/src/options.rs",
    "source-agent/src/main.rs",
    "target-agent/src/main.rs",
    "target-agent/src/options.rs",
];

pub(super) fn check(tree: &Tree) -> Findings {
    let mut findings = Findings::new();
    match tree.text(OPERATIONS) {
        Some(text) => check_operations(tree, text, &mut findings),
        None => findings.push(format!("{OPERATIONS} is missing")),
    }
    match tree.text(PROTOCOL) {
        Some(text) => check_protocol(tree, text, &mut findings),
        None => findings.push(format!("{PROTOCOL} is missing")),
    }
    match tree.text(KUBERNETES) {
        Some(text) => check_controller(tree, text, &mut findings),
        None => findings.push(format!("{KUBERNETES} is missing")),
    }
    findings
}

fn check_operations(tree: &Tree, text: &str, findings: &mut Findings) {
    let documented = names(text);
    let mut compare = |what: &str, known: &BTreeSet<String>, is_one: &dyn Fn(&str) -> bool| {
        let missing = known.iter().filter(|name| !documented.contains(*name));
        findings
            .extend(missing.map(|name| format!("{OPERATIONS}: the {what} `{name}` is missing")));
        let unknown = documented
            .iter()
            .filter(|name| is_one(name) && !known.contains(*name));
        findings.extend(unknown.map(|name| format!("{OPERATIONS}: there is no {what} `{name}`")));
    };
    let agents = || AGENT_FLAGS.iter().filter_map(|path| tree.text(path));
    let agent_keys: BTreeSet<_> = agents().flat_map(keys).collect();
    let agent_flags: BTreeSet<_> = agents().flat_map(flags).collect();
    compare("environment key", &agent_keys, &|name| {
        name.starts_with("VOLFERRY_")
    });
    compare("metric", &metrics(tree), &|name| {
        name.starts_with("volferry_")
    });
    compare("flag", &agent_flags, &|_| false);
    let of_clap = ["--help", "--version"].map(str::to_owned);
    let own = tree.rust().flat_map(|(_, text)| flags(text));
    let every_flag: BTreeSet<_> = own.chain(of_clap).collect();
    let is_unknown = |name: &&String| name.starts_with("--") && !every_flag.contains(*name);
    let unknown = documented.iter().filter(is_unknown);
    findings.extend(unknown.map(|name| format!("{OPERATIONS}: there is no flag `{name}`")));
    check_failures(tree, text, findings);
}

/// Failure codes and exit codes: each has a row, and each row of their tables is one.
fn check_failures(tree: &Tree, text: &str, findings: &mut Findings) {
    let source = tree.text("protocol/src/failure.rs").unwrap_or_default();
    let codes = failure_codes(source);
    let documented = names(text);
    let missing = codes.iter().filter(|code| !documented.contains(*code));
    findings
        .extend(missing.map(|code| format!("{OPERATIONS}: the failure code `{code}` is missing")));
    for row in rows_below(text, "failure code") {
        let name = row.first().map(|cell| bare(cell)).unwrap_or_default();
        if row.first().is_some_and(|cell| cell.starts_with('`')) && !codes.contains(name) {
            findings.push(format!("{OPERATIONS}: there is no failure code `{name}`"));
        }
    }
    let exits = exit_codes(source);
    let rows = rows_below(text, "exit code");
    let shown = |row: &[&str]| {
        let number = row.iter().find_map(|cell| bare(cell).parse::<u8>().ok())?;
        let cells = row.iter().map(|cell| bare(cell).to_lowercase());
        Some((number, cells.collect::<Vec<_>>().join(" ")))
    };
    let shown: Vec<_> = rows.iter().filter_map(|row| shown(row)).collect();
    for (class, number) in &exits {
        let is_there = |(at, words): &(u8, String)| at == number && words.contains(&**class);
        if !shown.iter().any(is_there) {
            findings.push(format!(
                "{OPERATIONS}: the exit code {number} of {class} is missing"
            ));
        }
    }
    let is_known = |number: u8| number == 0 || exits.iter().any(|(_, exit)| *exit == number);
    let unknown = shown.iter().filter(|(number, _)| !is_known(*number));
    findings
        .extend(unknown.map(|(number, _)| format!("{OPERATIONS}: there is no exit code {number}")));
}

/// Messages and frames: each is named, and each message of an example is one.
fn check_protocol(tree: &Tree, text: &str, findings: &mut Findings) {
    let source = |path| tree.text(path).unwrap_or_default();
    let messages = variants(source("protocol/src/message.rs"), "Message");
    let frames = variants(source("protocol/src/frame.rs"), "DataFrame");
    let documented: BTreeSet<_> = names(text).iter().map(|name| name.to_lowercase()).collect();
    for (what, names) in [("message", &messages), ("frame", &frames)] {
        let missing = names.iter().filter(|name| !documented.contains(*name));
        findings.extend(missing.map(|name| format!("{PROTOCOL}: the {what} `{name}` is missing")));
    }
    let examples = text
        .split("\"type\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').nth(1));
    let unknown = examples.filter(|name| !messages.contains(*name));
    findings.extend(unknown.map(|name| format!("{PROTOCOL}: there is no message `{name}`")));
}

/// The controller's flags: each has a row, and each row of their table is one.
fn check_controller(tree: &Tree, text: &str, findings: &mut Findings) {
    let known: BTreeSet<_> = flags(tree.text(CONTROLLER).unwrap_or_default())
        .into_iter()
        .collect();
    let rows = rows_below(text, "the controller");
    let shown = rows.iter().filter_map(|row| row.first());
    let shown: BTreeSet<_> = shown
        .map(|cell| bare(cell).to_owned())
        .filter(|name| name.starts_with("--") && !name.starts_with("---"))
        .collect();
    let missing = known.difference(&shown);
    findings.extend(missing.map(|name| format!("{KUBERNETES}: the flag `{name}` is missing")));
    let unknown = shown.difference(&known);
    findings.extend(unknown.map(|name| format!("{KUBERNETES}: there is no flag `{name}`")));
}

/// What stands in backticks, outside code blocks.
pub(super) fn backticked(text: &str) -> impl Iterator<Item = &str> {
    let is_fence = |line: &&str| line.trim_start().starts_with("```");
    let mut is_code = false;
    let prose = text.lines().filter(move |line| {
        is_code ^= is_fence(line);
        !is_code && !is_fence(line)
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// What stands in code blocks.
pub(super) fn fenced(text: &str) -> String {
    let blocks = text.split("```").skip(1).step_by(2);
    blocks
        .map(|block| block.split_once('\n').map_or("", |(_, code)| code))
        .collect()
}

/// The names in backticks, without values, labels and placeholders.
fn names(text: &str) -> BTreeSet<String> {
    let name = |words: &str| {
        let end = words.find([' ', '=', '{', '[']).unwrap_or(words.len());
        words.split_at(end).0.to_owned()
    };
    backticked(text).map(name).collect()
}

/// The rows of tables below a heading that holds `title`, cell by cell.
fn rows_below<'a>(text: &'a str, title: &str) -> Vec<Vec<&'a str>> {
    let mut is_below = false;
    let mut rows = Vec::new();
    for line in text.lines() {
        if line.starts_with('#') {
            is_below = line.to_lowercase().contains(title);
        } else if is_below && line.trim_start().starts_with('|') {
            rows.push(
                line.trim()
                    .trim_matches('|')
                    .split('|')
                    .map(str::trim)
                    .collect(),
            );
        }
    }
    rows
}

fn bare(cell: &str) -> &str {
    cell.trim_matches(['`', '*', ' '])
}

/// The wire names of the table in failure.rs.
fn failure_codes(source: &str) -> BTreeSet<String> {
    let table = source
        .rsplit_once("\nfailure_codes! {")
        .map_or("", |(_, table)| table);
    let lines = table.lines().take_while(|line| !line.starts_with('}'));
    let code = |line: &str| line.split('"').nth(1).map(str::to_owned);
    lines.filter_map(code).chain(["other".to_owned()]).collect()
}

/// Class and number of each exit code of failure.rs.
fn exit_codes(source: &str) -> Vec<(String, u8)> {
    let code = |line: &str| {
        let (class, number) = line.trim().strip_prefix("Self::")?.split_once(" => ")?;
        Some((
            class.to_lowercase(),
            number.trim_end_matches(',').parse().ok()?,
        ))
    };
    source.lines().filter_map(code).collect()
}

/// Literals of each crate's metrics.rs that are names of metrics.
pub(super) fn metrics(tree: &Tree) -> BTreeSet<String> {
    let files = tree
        .rust()
        .filter(|(path, _)| path.ends_with("/src/metrics.rs"));
    let code = files.map(|(_, text)| text.split("\nmod tests {").next().unwrap_or_default());
    code.flat_map(|code| literals(code, "volferry_")).collect()
}

/// Environment keys of a file's flags.
fn keys(source: &str) -> Vec<String> {
    literals(source, "VOLFERRY_")
}

fn literals(source: &str, prefix: &str) -> Vec<String> {
    let literals = source.split('"').skip(1).step_by(2);
    let named = literals.filter(|text| text.starts_with(prefix));
    named.map(str::to_owned).collect()
}

/// The flags that a file declares: fields with `#[arg(long…)]` above them.
fn flags(source: &str) -> Vec<String> {
    let mut flags = Vec::new();
    let mut is_long = false;
    for line in source.lines().map(str::trim) {
        let starts =
            line.starts_with("#[arg(long") || line == "long," || line.starts_with("long =");
        is_long |= starts;
        let field = line.trim_start_matches("pub ").split_once(": ");
        if let Some((name, _)) = field.filter(|(name, _)| is_long && is_field(name)) {
            flags.push(format!("--{}", name.replace('_', "-")));
            is_long = false;
        }
    }
    flags
}

fn is_field(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte == b'_' || byte.is_ascii_lowercase())
}

/// The variants of an enum, in snake case.
fn variants(source: &str, name: &str) -> BTreeSet<String> {
    let body = source.split_once(&format!("pub enum {name} {{\n"));
    let lines = body.map_or("", |(_, body)| body).lines();
    let variant = |line: &str| {
        let word = line.strip_prefix("    ")?;
        let end = word.find(['(', ',', ' ']).unwrap_or(word.len());
        let is_variant = word.starts_with(|char: char| char.is_ascii_uppercase());
        is_variant.then(|| snake(word.split_at(end).0))
    };
    lines
        .take_while(|line| *line != "}")
        .filter_map(variant)
        .collect()
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for char in name.chars() {
        if char.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(char.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILURE: &str = "\
impl FailureClass {
    match self {
            Self::Usage => 2,
    }
}
failure_codes! {
    Busy = \"busy\", Network, retry: true, \"the target serves another session\";
}
";
    const OPTIONS: &str = "\
    #[arg(long, env = \"VOLFERRY_LOG\")]
    pub log: String,
    #[arg(
        long,
        env = \"VOLFERRY_MEMORY_MIB\",
    )]
    #[arg(value_parser = range(16..=65536))]
    pub memory_mib: u32,
";
    const METRICS: &str = "\"volferry_failures_total\"\nmod tests {\n\"volferry_test\"";
    const MANUAL: &str = "\
## Flags
| flag | key |
|---|---|
| `--log FILTER` | `VOLFERRY_LOG` |
| `--memory-mib` | `VOLFERRY_MEMORY_MIB` |
## Metrics
`volferry_failures_total{code=\"busy\"}` counts failures.
## Exit codes
| code | class |
|---|---|
| `2` | `usage` |
## Failure codes
| code | what to do |
|---|---|
| `busy` | wait |
| `other` | update |
";

    fn found(manual: &str) -> Findings {
        let tree = Tree::of(&[
            ("agent/src/metrics.rs", METRICS),
            ("agent/src/options.rs", OPTIONS),
            ("protocol/src/failure.rs", FAILURE),
        ]);
        let mut findings = Findings::new();
        check_operations(&tree, manual, &mut findings);
        findings
    }

    #[test]
    fn a_manual_that_names_everything_is_tidy() {
        assert_eq!(found(MANUAL), Findings::new());
    }

    #[test]
    fn what_a_manual_lacks_or_makes_up_is_found() {
        let words = [
            "--memory-mib",
            "VOLFERRY_LOG",
            "volferry_failures_total",
            "busy` |",
            "2` |",
        ];
        for word in words {
            let other = word.replacen(|char: char| char.is_alphanumeric(), "9", 1);
            assert_ne!(
                found(&MANUAL.replace(word, &other)),
                Findings::new(),
                "{word}"
            );
        }
        let more = [
            "`--no-such`",
            "`VOLFERRY_NONE`",
            "`volferry_none`",
            "| `none` | |",
            "## Exit codes\n| 9 | |",
        ];
        for line in more {
            assert_eq!(found(&format!("{MANUAL}{line}\n")).len(), 1, "{line}");
        }
    }

    #[test]
    fn the_protocol_is_described_as_it_is() {
        let tree = Tree::of(&[
            (
                "protocol/src/message.rs",
                "pub enum Message {\n    Ping,\n    SoLong(Box<X>),\n}\n",
            ),
            (
                "protocol/src/frame.rs",
                "pub enum DataFrame {\n    End {\n        frames: u64,\n    },\n}\n",
            ),
        ]);
        let found = |text: &str| {
            let mut findings = Findings::new();
            check_protocol(&tree, text, &mut findings);
            findings.len()
        };
        let whole = "`ping`, `so_long`, `End`\n```\n{\"type\": \"ping\"}\n```\n";
        assert_eq!(found(whole), 0);
        assert_eq!(found(&whole.replace("End", "end")), 0);
        assert_eq!(found(&whole.replace("so_long", "bye")), 1);
        assert_eq!(found(&whole.replace("\"ping\"", "\"pong\"")), 1);
        assert_eq!(found(""), 3);
    }

    #[test]
    fn the_controllers_flags_are_in_its_table() {
        let source = "    #[arg(long)]\n    image: String,\n    #[arg(long)]\n    log: String,\n";
        let tree = Tree::of(&[(CONTROLLER, source)]);
        let found = |rows: &str| {
            let mut findings = Findings::new();
            let manual = format!("## The controller\n| flag | |\n|---|---|\n{rows}");
            check_controller(&tree, &manual, &mut findings);
            findings.len()
        };
        assert_eq!(found("| `--image` | |\n| `--log` | |\n"), 0);
        assert_eq!(found("| `--image` | |\n"), 1);
        assert_eq!(found("| `--image` | |\n| `--log` | |\n| `--more` | |\n"), 1);
    }

    #[test]
    fn a_missing_manual_is_found() {
        assert_eq!(check(&Tree::default()).len(), 3);
    }
}
