//! Why a request was not answered with labels, and the one table that maps it to a gRPC status.

use std::time::Duration;

use stillhouse_batcher::Refusal;
use stillhouse_proto::{limits::MAX_ERROR_BYTES, v1::LabelError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Why a request was not answered with labels.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
    #[error("{what}; try again in {retry_after:?}")]
    Exhausted { reason: &'static str, what: String, retry_after: Duration },
    #[error("dropped by its deadline before it was run")]
    Deadline,
    #[error("cancelled before it was run")]
    Cancelled,
    #[error("{}", unauthenticated(*shown))]
    Unauthenticated { shown: bool },
    #[error("{what}")]
    Denied { reason: &'static str, what: String },
    #[error("the server is draining")]
    Draining,
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    #[error("the forward pass failed: {0}")]
    Forward(String),
    #[error(
        "this teacher is an ensemble of {members} models, which have no output projection in common"
    )]
    NoHead { members: usize },
}

/// Why a caller is nobody's: `shown` whether it has shown anything. Not what was wrong with it.
fn unauthenticated(shown: bool) -> &'static str {
    match shown {
        true => "the token or certificate is none of a client of this teacher",
        false => {
            "this teacher asks for a token (the header `authorization: Bearer TOKEN`) or a client \
             certificate; neither came"
        }
    }
}

/// How long a refused client should wait where nothing has been measured yet.
const RETRY_UNKNOWN: Duration = Duration::from_millis(100);

impl ServeError {
    /// An invalid field: what it is, and what it may be.
    pub(crate) fn invalid(
        field: impl Into<String>,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Self {
        Self::Invalid { field: field.into(), reason: format!("is {found}; must be {expected}") }
    }

    /// A fault within a part of the request; its text names the field below that part.
    pub(crate) fn at(part: &str, fault: impl std::fmt::Display) -> Self {
        Self::Invalid { field: part.to_owned(), reason: fault.to_string() }
    }

    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Exhausted { .. } => Code::ResourceExhausted,
            Self::Deadline => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::Draining | Self::DeviceLost(_) => Code::Unavailable,
            Self::Forward(_) => Code::Internal,
            Self::NoHead { .. } => Code::FailedPrecondition,
            Self::Unauthenticated { .. } => Code::Unauthenticated,
            Self::Denied { .. } => Code::PermissionDenied,
        }
    }

    /// The value of the metrics' label `outcome`.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Invalid { .. } | Self::NoHead { .. } => "invalid",
            Self::Exhausted { .. } => "refused",
            Self::Unauthenticated { .. } | Self::Denied { .. } => "denied",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Draining => "draining",
            Self::DeviceLost(_) | Self::Forward(_) => "failed",
        }
    }

    /// What a stream answers with.
    pub(crate) fn to_label_error(&self) -> LabelError {
        let retry_after_ms = match self {
            Self::Exhausted { retry_after, .. } => {
                u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX).max(1)
            }
            _ => 0,
        };
        LabelError { code: self.code() as i32, message: self.text(), retry_after_ms }
    }

    /// For a person, and short enough for a header: a request may hold anything.
    fn text(&self) -> String {
        const CUT: &str = "...";
        let mut text = self.to_string();
        if text.len() > MAX_ERROR_BYTES {
            text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES - CUT.len()));
            text += CUT;
        }
        text
    }
}

impl From<ServeError> for Status {
    fn from(error: ServeError) -> Self {
        let (code, message) = (error.code(), error.text());
        match error {
            ServeError::Invalid { field, .. } => {
                let details = ErrorDetails::with_bad_request_violation(field, message.clone());
                Self::with_error_details(code, message, details)
            }
            ServeError::Exhausted { retry_after, .. } => Self::with_error_details(
                code,
                message,
                ErrorDetails::with_retry_info(Some(retry_after)),
            ),
            _ => Self::new(code, message),
        }
    }
}

impl From<Refusal> for ServeError {
    fn from(refusal: Refusal) -> Self {
        let retry_after = refusal.retry_after().unwrap_or(RETRY_UNKNOWN);
        let what = refusal.to_string();
        let exhausted = |reason, what| Self::Exhausted { reason, what, retry_after };
        match refusal {
            Refusal::QueueFull { .. } => exhausted("queue", what),
            Refusal::ClientFull { .. } => exhausted("client", what),
            Refusal::TooManyClients { .. } => exhausted("clients", what),
            Refusal::Expired => Self::Deadline,
            Refusal::Draining => Self::Draining,
            Refusal::CostOutOfRange { .. } => {
                Self::Invalid { field: "rows".to_owned(), reason: what }
            }
        }
    }
}
