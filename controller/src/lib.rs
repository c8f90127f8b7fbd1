//! The Kubernetes controller of volferry: users write `VolumeClone`s, it makes what they need.
//!
//! ```text
//!            ┌──────────── Cluster: every call to the API server ◄───────────┐
//!            ▼                                                               │
//! VolumeClone ──► observe ──► World ──► decide ──► Decision ──► act ─────────┘
//!                    ▲       (plain data)  (pure)   status, steps, Events
//!                    └── Observe: a target's progress, over mutual TLS
//! ```
//!
//! [`decide`](decide::decide) knows no API and no clock, [`cluster`] decides nothing, and
//! [`reconcile`] joins them. What is made for a clone is named after its uid and labelled with it
//! ([`names`]), so nothing is made twice and everything is found again, in any namespace. The bytes
//! are the agents' business: the controller makes their pods and reads how far they are.

#![forbid(unsafe_code)]

mod agent_pod;
pub mod api;
mod cache;
pub mod claims;
pub mod cluster;
pub mod credentials;
pub mod decide;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod names;
pub mod objects;
pub mod observer;
pub mod plugin;
pub mod reason;
pub mod reconcile;
pub mod world;
