//! The only place that prints, and the only one that writes reports.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report goes to the terminal, progress to its other stream"
)]

use std::fs;
use std::path::Path;

use crate::error::{At as _, Error};
use crate::results::Results;
use crate::{chart, table};

/// Says what happens now.
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

/// Prints the report.
pub(crate) fn report(results: &Results) {
    println!("{}", table::render(results));
}

/// Writes `results.json` and `results.svg`.
pub(crate) fn save(results: &Results, directory: &Path) -> Result<(), Error> {
    let json = directory.join("results.json");
    let text = serde_json::to_string_pretty(results).map_err(std::io::Error::from);
    let text = text.at("write", &json)? + "\n";
    fs::write(&json, text).at("write", &json)?;
    let svg = directory.join("results.svg");
    fs::write(&svg, chart::render(results)).at("write", &svg)
}
