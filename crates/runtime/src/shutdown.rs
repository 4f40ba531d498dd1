//! The signals that end a process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit;

/// SIGTERM (the orchestrator's) and SIGINT (a person's), caught from construction on.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the two signals over from their default action.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of them and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// From now on one more ends the process at once, for a person who does not want to wait. Must
    /// be called within a tokio runtime.
    pub fn end_at_next(mut self) {
        tokio::spawn(async move {
            let signal = self.next().await;
            tracing::warn!(signal, "ending at once");
            std::process::exit(exit::INTERRUPTED.into());
        });
    }
}
