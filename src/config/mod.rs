//! `shake.toml`: text in, a [`Plan`] or a list of precise errors out.

mod plan;

pub use plan::*;
