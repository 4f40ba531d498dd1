//! `overhead`: what the gRPC teacher costs a student, an encoding, and the wire.
//!
//! [`students`] trains the same student with each source of labels, [`encodings`] counts what a row
//! of each encoding costs, [`wire`] compares dense labels with a raw TCP copy.

mod encodings;
mod students;
mod wire;

use super::Figures;

pub(super) fn run(seconds: Option<f64>, part: Option<&str>) -> Figures {
    let seconds = seconds.unwrap_or(8.0);
    let mut figures = Figures::default();
    let all = part.is_none();
    if all || part == Some("students") {
        students::measure(seconds, &mut figures);
    }
    if part == Some(students::IN_PROCESS) {
        students::in_process_part(seconds, &mut figures);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if all || part == Some("encodings") {
        runtime.block_on(encodings::measure(seconds, &mut figures));
    }
    if all || part == Some("wire") {
        runtime.block_on(wire::measure(seconds, &mut figures));
    }
    let none = figures.is_empty();
    figures.require(!none, format!("no part {part:?}; there are: students, encodings, wire"));
    figures
}
