//! Clones of trees: files in one directory, small ones that travel whole and large ones in pieces.
//!
//! The machines, digests, vouchers and the journal's form are those of the crate; what the agents
//! and their filesystems do is played. Links and directories are left out: they are made anew in
//! each session, and hold nothing to go on from.

mod checker;
mod disk;
mod files;
mod restore;
mod source;
mod target;
mod world;

pub(crate) use world::World;
