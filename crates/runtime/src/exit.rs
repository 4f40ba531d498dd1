//! How a process ends: what the exit codes mean (a Kubernetes Job's failure policy reads them), and
//! the last words before one of them.

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

/// Everything that was asked for is done.
pub const DONE: u8 = 0;
/// Failed for a reason that another try would not mend and that is not the configuration's.
pub const FAILED: u8 = 1;
/// The configuration, a flag or an input file is wrong: another try cannot succeed (`EX_USAGE`).
pub const CONFIGURATION: u8 = 64;
/// Something needed is not there at the moment, and another try may succeed (`EX_TEMPFAIL`).
pub const TEMPORARY: u8 = 75;
/// Ended at once by a second signal; what was not saved is lost (128 + 2).
pub const INTERRUPTED: u8 = 130;
/// Ended by SIGTERM or SIGINT with the work so far saved (128 + 15).
pub const TERMINATED: u8 = 143;

/// Ends on a command line that asked for help or the version, or that is wrong.
pub fn usage(error: &clap::Error) -> ExitCode {
    // Nothing is left to say where the terminal is gone.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { CONFIGURATION } else { DONE })
}

/// Ends on an error: one line with the program's name, the error and its causes. Logging may not
/// have been started; standard error is there always.
pub fn fail(program: &str, error: &dyn Error, code: u8) -> ExitCode {
    // Standard error may be closed, too: then the code says it all.
    let _ = writeln!(io::stderr(), "{program}: {}", with_causes(error));
    ExitCode::from(code)
}

fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // An error that shows its cause in its own words is not repeated.
        if !line.contains(&words) {
            line = format!("{line}: {words}");
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the run failed")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("no such file")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("model: {0}")]
    struct Shows(#[source] Inner);

    #[test]
    fn causes_are_named_once() {
        assert_eq!(with_causes(&Outer(Inner)), "the run failed: no such file");
        assert_eq!(with_causes(&Shows(Inner)), "model: no such file");
    }
}
