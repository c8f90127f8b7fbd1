//! The Kubernetes controller of volferry.
//!
//! ```text
//! VolumeClone ──► observe ──► World ──► decide (pure) ──► Decision ──► act
//!                    ▲                                                  │
//!                    └──────────────── Cluster: every API call ◄────────┘
//! ```
#![forbid(unsafe_code)]

pub mod api;
