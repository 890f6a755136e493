//! shakedeck: a live console for moving a Redis or Valkey data set to another server while the application keeps running.

pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod engine;
pub mod format;
pub mod headless;
pub mod psync;
pub mod rdb;
pub mod resp;
pub mod status;
pub mod ui;
