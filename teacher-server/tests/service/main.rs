//! The service over real loopback gRPC, with a model that the tests control.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod age;
mod bounds;
mod cache;
mod ensemble;
mod faults;
mod gated;
mod shares;
