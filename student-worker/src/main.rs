//! The `student-worker` binary.

use std::{error::Error, process::ExitCode};

use clap::Parser as _;
use stillhouse_runtime::{allocator, exit};
use student_worker::cli::{self, Arguments};
use tokio::runtime::Builder;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    allocator::keep_freed_pages();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are asked for; anything else is a wrong command line.
            let _ = error.print();
            let wrong = error.use_stderr();
            return ExitCode::from(if wrong { exit::CONFIGURATION } else { exit::DONE });
        }
    };
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, exit::FAILED),
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// One line with the error and its causes.
#[expect(clippy::print_stderr, reason = "the last words of the process")]
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !line.contains(&words) {
            line = format!("{line}: {words}");
        }
        cause = error.source();
    }
    eprintln!("student-worker: {line}");
    ExitCode::from(code)
}
