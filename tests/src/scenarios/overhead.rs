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
    match part {
        Some(part) => students::part(part, seconds, &mut figures),
        None => {
            students::measure(seconds, &mut figures);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                encodings::measure(seconds, &mut figures).await;
                wire::measure(seconds, &mut figures).await;
            });
        }
    }
    figures
}

/// A command pinned to one core of this machine.
fn pinned(core: usize, program: &std::path::Path) -> std::process::Command {
    let mut command = std::process::Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program);
    command
}
