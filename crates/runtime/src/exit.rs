//! What the exit codes mean. A Kubernetes Job's failure policy reads them.

/// Everything that was asked for is done.
pub const DONE: u8 = 0;
/// Failed for a reason that another try would not mend and that is not the configuration's.
pub const FAILED: u8 = 1;
/// The configuration, a flag or an input file is wrong: another try cannot succeed (`EX_USAGE`).
pub const CONFIGURATION: u8 = 64;
/// Something needed is not there at the moment, and another try may succeed (`EX_TEMPFAIL`).
pub const TEMPORARY: u8 = 75;
/// Ended by SIGTERM or SIGINT with the work so far saved (128 + 15).
pub const TERMINATED: u8 = 143;
