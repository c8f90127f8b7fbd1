//! Clones of block volumes.

mod checker;
mod content;
mod disk;
mod source;
mod target;
mod world;

pub(crate) use world::World;
