//! Without the feature `otlp`: nothing is recorded.

use super::{Role, Traces};
use crate::config::ConfigError;

/// What names a span to others; of one that is not recorded, nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context(());

/// Something that takes time; it ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(());

/// Sends spans to a collector from now on, if there is one.
///
/// # Errors
/// As [`Traces::validate`].
pub fn start(traces: &Traces, _service: &'static str) -> Result<(), ConfigError> {
    traces.validate()
}

/// Sends what has not been sent yet, and ends. Blocks, for some seconds at most.
pub fn stop() {}

impl Context {
    /// Reads a `traceparent`; nothing if it is none, or nothing is recorded here.
    pub fn of(_traceparent: &str) -> Self {
        Self(())
    }

    /// Whether it names nothing.
    pub fn is_none(&self) -> bool {
        true
    }

    /// As `traceparent`; empty if it names nothing.
    pub fn traceparent(&self) -> String {
        String::new()
    }
}

impl Span {
    /// Begins one, within the span that `parent` names, and linked to others. Not recorded if its
    /// parent is not, or if none of the others is.
    pub fn begin<'a>(
        _name: &'static str,
        _role: Role,
        _parent: &Context,
        _links: impl IntoIterator<Item = &'a Context>,
    ) -> Self {
        Self(())
    }

    /// Links it to another.
    pub fn link(&mut self, _other: &Context) {}

    /// Notes a number of it.
    pub fn number(&mut self, _key: &'static str, _value: u64) {}

    /// Notes a word of it.
    pub fn word(&mut self, _key: &'static str, _value: &str) {}

    /// Notes that what it did failed, and why.
    pub fn failed(&mut self, _why: &dyn std::fmt::Display) {}

    /// Ends it before its scope does.
    pub fn end(self) {}

    /// What names it to others.
    pub fn context(&self) -> Context {
        Context(())
    }
}
