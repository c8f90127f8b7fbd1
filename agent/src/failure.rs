//! Errors of the volume and of the transport become failures here, each once: the code, and the
//! whole chain in words.

use std::error::Error;

use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::FrameError;
use volferry_storage::tree::TreeError;
use volferry_storage::{Operation, StorageError};
use volferry_transport::{Class, TransportError};

use crate::progress::End;

/// The failure behind an error of the volume at `end`.
#[must_use]
pub fn of_storage(end: End, error: &StorageError) -> Failure {
    let code = match (end, error) {
        (End::Source, StorageError::EndedEarly { .. } | StorageError::Resized { .. }) => {
            FailureCode::SourceChanged
        }
        (End::Source, StorageError::IoAt { .. }) => FailureCode::SourceRead,
        (End::Source, _) => FailureCode::SourceOpen,
        (End::Target, StorageError::TargetTooSmall { .. }) => FailureCode::TargetTooSmall,
        (End::Target, StorageError::InUse { .. } | StorageError::TargetExists { .. }) => {
            FailureCode::TargetInUse
        }
        (End::Target, error) if error.is_no_space() => FailureCode::TargetNoSpace,
        (End::Target, StorageError::IoAt { .. } | StorageError::WritesLost { .. }) => {
            FailureCode::TargetWrite
        }
        (
            End::Target,
            StorageError::Io {
                operation: Operation::Flush,
                ..
            },
        ) => FailureCode::TargetWrite,
        (End::Target, _) => FailureCode::TargetOpen,
    };
    let mut text = format!("{} volume: {}", end.label(), chain(error));
    if let Some(remedy) = error.remedy() {
        text.push_str("; ");
        text.push_str(remedy);
    }
    Failure::new(code, text)
}

/// The failure behind an error of the tree at `end`.
#[must_use]
pub fn of_tree(end: End, error: &TreeError) -> Failure {
    let code = match (end, error) {
        (_, TreeError::Record(_) | TreeError::Refused { .. } | TreeError::Unasked(_)) => {
            FailureCode::Protocol
        }
        (_, TreeError::Corrupt { .. }) => FailureCode::Integrity,
        (End::Target, TreeError::NoSpace { .. }) => FailureCode::TargetNoSpace,
        (
            End::Target,
            TreeError::NotEmpty { .. } | TreeError::InUse { .. } | TreeError::Merged { .. },
        ) => FailureCode::TargetInUse,
        (End::Target, TreeError::Storage(error)) => match of_storage(end, error).code {
            // The root was open when anything else failed.
            FailureCode::TargetOpen if !is_opening(error) => FailureCode::TargetWrite,
            code => code,
        },
        (End::Target, TreeError::Leftover { .. }) => FailureCode::TargetOpen,
        (End::Target, TreeError::NamesMissing { .. }) => FailureCode::TargetWrite,
        (End::Source, TreeError::Storage(error)) if !is_opening(error) => FailureCode::SourceRead,
        (End::Source, _) => FailureCode::SourceOpen,
    };
    let whose = match code {
        FailureCode::Protocol if matches!(end, End::Source) => {
            "what the target sent makes no sense".to_owned()
        }
        FailureCode::Protocol => "what the source sent must not be applied".to_owned(),
        _ => format!("{} tree", end.label()),
    };
    let mut text = format!("{whose}: {}", chain(error));
    if let Some(remedy) = error.remedy() {
        text.push_str("; ");
        text.push_str(remedy);
    }
    Failure::new(code, text)
}

fn is_opening(error: &StorageError) -> bool {
    matches!(
        error,
        StorageError::Io {
            operation: Operation::Open,
            ..
        }
    )
}

/// The failure behind an error of a connection.
#[must_use]
pub fn of_transport(error: &TransportError) -> Failure {
    let code = match (error.class(), error) {
        (Class::Identity, _) => FailureCode::Identity,
        (Class::Protocol, _) => FailureCode::Protocol,
        (Class::Network, TransportError::Io { .. } | TransportError::Closed { .. }) => {
            FailureCode::Disconnected
        }
        (Class::Network, TransportError::Listen { .. }) => FailureCode::Usage,
        (Class::Network, _) => FailureCode::Connect,
    };
    Failure::new(code, chain(error))
}

/// The failure behind a frame of the peer that is none.
#[must_use]
pub fn of_frame(peer: End, error: &FrameError) -> Failure {
    let text = format!("the {} agent sent what is no frame: {error}", peer.label());
    Failure::new(FailureCode::Protocol, text)
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
