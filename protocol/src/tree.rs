//! Trees: what travels when a directory with all that is below it is cloned, and how that is
//! proven.
//!
//! ```text
//! source                                              target
//!   walk ─► records ─► packs   ═══════════════════►   checked, decoded, applied below one root
//!           large files ─► pieces, zero ranges ═══►   checked, written, renamed into place
//!   TreeDigest of what was read                       TreeDigest of what was written
//!   └──► Finish(digest, counts, what was not kept) ─►  equal? ──► Receipt
//! ```
//!
//! - [`path`] says what a name is; a name of a peer is checked where it is decoded, and nowhere
//!   else can one be made.
//! - [`record`] is what a pack holds, one record for each name; [`frame`] is what goes around it.
//! - [`file_digest`] folds the pieces of a large file into its plain BLAKE3 digest.
//! - [`set_digest`] adds up a tree in any order; [`links`] knows which names are one file.
//! - [`offer`] is how the two ends speak of what the target holds already.
//! - [`journal`] is the form in which a target keeps what is durable.
//! - [`proof`] is the form in which it keeps that all of it is proven.
//! - [`fidelity`] names what can be lost on the way from one filesystem to another.
//! - [`session`] holds the two state machines.

pub mod fidelity;
pub mod file_digest;
pub mod frame;
pub mod journal;
pub mod links;
pub mod offer;
pub mod path;
pub mod proof;
pub mod record;
pub mod session;
pub mod set_digest;
