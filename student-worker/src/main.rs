//! The `student-worker` binary.

use std::process::ExitCode;

use clap::Parser as _;
use stillhouse_runtime::{exit, traces, tuning};
use student_worker::cli::{self, Arguments};
use tokio::runtime::Builder;

/// What error messages start with.
const NAME: &str = "student-worker";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tuning::keep_freed_pages(None);
    tuning::quiet_candle_threads();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::usage(&error),
    };
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::fail(NAME, &error, exit::FAILED),
    };
    let ended = runtime.block_on(cli::run(arguments));
    traces::stop();
    // What was told to stop and is still at work, such as a test, has nothing to keep.
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => exit::fail(NAME, &error, error.exit_code()),
    }
}
