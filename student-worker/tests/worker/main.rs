//! The student worker against teachers over real sockets, one behaviour per file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod augment;
mod capture;
mod command_line;
mod encodings;
mod ensemble;
mod eval;
mod fake_teacher;
mod faults;
mod folder;
mod formats;
mod loss_schedule;
mod replicas;
mod resume;
mod stopped_early;
mod support;
mod sweep;
mod teacher_lost;
mod text;
mod text_classifier;
mod transfer_set;
