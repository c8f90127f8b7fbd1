//! `volferry bench`: how fast a clone can be here, how fast it is, and what holds it.
//!
//! Three kinds of measurement, in rounds, so that what disturbs the machine disturbs all of them:
//! - *ceilings* ([`ceiling`]): each part of a clone alone, by the very code that a clone runs;
//! - *clones* ([`shape`]): volumes of several shapes, cloned by both agents ([`Cloner`]);
//! - from the ceilings the *roofline* ([`roofline`]): how long a clone should take, and which ceiling
//!   binds. It is pure, as are [`compare`], [`table`] and [`page`], which read the [`report`].
//!
//! Agents in pods of their own are measured [`apart`]: each end by itself, and the clones by whoever
//! had them made.
//!
//! What holds here: the source is read and never written, nothing is written but into what this run
//! made or was told to overwrite, and all that it made is gone when it ends, however it ends short of
//! being killed ([`place`]).

#![forbid(unsafe_code)]

use std::path::Path;

use volferry_agent::trace::Sample;
use volferry_protocol::failure::Failure;
use volferry_protocol::receipt::Receipt;

pub mod apart;
pub mod ceiling;
pub mod compare;
pub mod cost;
pub mod limits;
pub mod machine;
pub mod page;
pub mod place;
pub mod profile;
pub mod report;
pub mod roofline;
pub mod run;
pub mod settings;
pub mod shape;
pub mod stats;
pub mod stop;
pub mod table;

/// Whoever can clone one volume to another with both agents.
pub trait Cloner {
    /// Clones `source` to `target`, and tells `on_sample` several times a second how far it is.
    ///
    /// # Errors
    /// Whatever ends the clone.
    fn clone(
        &self,
        source: &Path,
        target: &Path,
        on_sample: &mut dyn FnMut(Sample),
    ) -> Result<Receipt, Failure>;
}
