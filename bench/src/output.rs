//! The only place that prints, and the only one that writes reports.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report goes to the terminal, progress to its other stream"
)]

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::{At as _, Error};
use crate::results::Results;
use crate::{chart, table};

/// Says what happens now.
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

/// Prints a line of a report.
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Prints the report.
pub(crate) fn report(results: &Results) {
    println!("{}", table::render(results));
}

/// Writes `results.json` and `results.svg`.
pub(crate) fn save(results: &Results, directory: &Path) -> Result<(), Error> {
    save_json(results, &directory.join("results.json"))?;
    let svg = directory.join("results.svg");
    fs::write(&svg, chart::render(results)).at("write", &svg)
}

/// Writes `results` as JSON.
pub(crate) fn save_json(results: &impl Serialize, path: &Path) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(results).map_err(std::io::Error::from);
    let text = text.at("write", path)? + "\n";
    fs::write(path, text).at("write", path)
}
