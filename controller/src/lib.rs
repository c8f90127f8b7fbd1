//! The Kubernetes controller of volferry.
#![forbid(unsafe_code)]

mod agent_pod;
pub mod api;
pub mod claims;
pub mod credentials;
pub mod decide;
pub mod names;
pub mod objects;
pub mod reason;
pub mod world;
