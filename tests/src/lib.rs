//! Support for tests across real processes, and the acceptance scenarios.
//!
//! * [`pki`]: certificates, made on the spot.
//! * [`process`]: the binaries, started, watched and killed.
//! * [`fuzzed`]: every parser that reads bytes from a peer or a file.
//! * [`models`]: small teachers, made on the spot.
//! * [`client`]: a plain gRPC client of a teacher.
//! * [`proxy`]: a TCP proxy that does harm.
//! * [`student`]: `student-worker train` as a process.
//! * [`turns`]: students that take turns on a core.
//! * [`scenarios`]: what `acceptance` measures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

pub mod client;
pub mod fuzzed;
pub mod models;
pub mod pki;
pub mod process;
pub mod proxy;
pub mod scenarios;
pub mod student;
pub mod turns;
