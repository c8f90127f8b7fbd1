//! How an agent ends: the receipt or the failure, written where somebody will look, and the exit
//! code.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::receipt::Receipt;

/// How a clone ended at one end.
pub type Outcome = Result<Receipt, Failure>;

/// A failure as written in place of a receipt.
#[derive(Debug, Serialize)]
struct FailureNote<'a> {
    failure: FailureBody<'a>,
}

#[derive(Debug, Serialize)]
struct FailureBody<'a> {
    class: &'static str,
    code: &'static str,
    exit_code: u8,
    retryable: bool,
    text: &'a str,
}

/// The outcome as one line of JSON: the receipt itself, or an object with a `failure`. A failure fits
/// a pod's termination message, which Kubernetes cuts at 4096 bytes.
#[must_use]
pub fn to_json(outcome: &Outcome) -> String {
    /// Leaves room for the other fields and for escapes.
    const TEXT_LEN_MAX: usize = 1024;
    let json = match outcome {
        Ok(receipt) => serde_json::to_string(receipt),
        Err(failure) => {
            let text: String = failure.text.chars().take(TEXT_LEN_MAX).collect();
            let body = FailureBody {
                class: failure.code.class().label(),
                code: failure.code.label(),
                exit_code: failure.code.class().exit_code(),
                retryable: failure.code.is_retryable(),
                text: &text,
            };
            serde_json::to_string(&FailureNote { failure: body })
        }
    };
    // Plain structs of numbers and texts always serialize.
    json.unwrap_or_default() + "\n"
}

/// Where Kubernetes looks for a termination message.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// What Kubernetes keeps of it, in bytes.
const TERMINATION_LEN_MAX: usize = 4096;

/// The outcome for a pod's termination message. A receipt that would be cut there could not be read:
/// the paths of what a tree lost go first, and their counts stay.
fn to_short_json(outcome: &Outcome) -> String {
    let json = to_json(outcome);
    match outcome {
        Ok(receipt) if json.len() > TERMINATION_LEN_MAX => {
            let mut receipt = receipt.clone();
            if let Some(tree) = &mut receipt.tree {
                tree.fidelity = tree.fidelity.counts_only();
            }
            to_json(&Ok(receipt))
        }
        _ => json,
    }
}

/// Writes the outcome to `path` and makes it durable. The file is written in place: a pod's
/// termination log is a mount that can't be replaced.
///
/// # Errors
/// When the file can't be written.
pub fn write(outcome: &Outcome, path: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    let json = if path == Path::new(TERMINATION_LOG) {
        to_short_json(outcome)
    } else {
        to_json(outcome)
    };
    file.write_all(json.as_bytes())?;
    match file.sync_all() {
        // A pipe or a terminal can't be synced and need not be.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

/// The exit code of an agent that ended so.
#[must_use]
pub fn exit_code(outcome: &Outcome) -> ExitCode {
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.code.class().exit_code()),
    }
}

/// The failure of an agent that was told to end.
#[must_use]
pub fn cancelled() -> Failure {
    Failure::new(
        FailureCode::Cancelled,
        "ended by a signal before the clone was done",
    )
}

#[cfg(test)]
mod tests {
    use volferry_protocol::receipt::TreeReceipt;
    use volferry_protocol::tree::fidelity::FidelityClass;

    use super::*;

    #[test]
    fn a_failure_fits_a_termination_message() {
        let outcome = Err(Failure::new(FailureCode::TargetWrite, "\"".repeat(9999)));
        let json = to_json(&outcome);
        assert!(json.len() <= 4096, "{} bytes", json.len());
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["failure"]["class"], "target");
        assert_eq!(value["failure"]["exit_code"], 4);
    }

    #[test]
    fn the_receipt_of_a_tree_that_lost_much_fits_too() {
        let mut receipt: Receipt =
            serde_json::from_str(include_str!("../../protocol/tests/golden/receipt-v1.json"))
                .unwrap();
        let mut tree = TreeReceipt::default();
        for number in 0..100 {
            for class in FidelityClass::ALL {
                let path = format!("a/rather/long/path/{number}");
                tree.fidelity.note(*class, path.as_bytes());
            }
        }
        let counts = tree.fidelity.counts_only();
        receipt.tree = Some(tree);
        let outcome = Ok(receipt);
        assert!(to_json(&outcome).len() > TERMINATION_LEN_MAX);
        let short = to_short_json(&outcome);
        assert!(short.len() <= TERMINATION_LEN_MAX, "{} bytes", short.len());
        let read: Receipt = serde_json::from_str(&short).unwrap();
        assert_eq!(read.tree.unwrap().fidelity, counts);
    }

    #[test]
    fn a_file_that_is_there_is_written_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination-log");
        std::fs::write(&path, "x".repeat(9999)).unwrap();
        write(&Err(cancelled()), &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("}\n") && text.len() < 4096);
    }
}
