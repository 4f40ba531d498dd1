//! Which failures pass by themselves: the one table.

use std::{error::Error, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The longest that the contract lets a teacher keep a client away.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try again, not before this time has passed.
    Retry(Duration),
    /// Another try would fail alike.
    Final,
}

/// Judges the status of a call or of a stream. One that the transport made (the connection broke,
/// the peer went away) has the transport's error as its source; one that the teacher sent has none.
pub(super) fn judge(status: &Status) -> Verdict {
    if status.source().is_some() {
        return Verdict::Retry(Duration::ZERO);
    }
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    judge_code(status.code(), after.unwrap_or_default())
}

/// Judges what a teacher said about one request.
pub(super) fn judge_code(code: Code, retry_after: Duration) -> Verdict {
    match code {
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => {
            Verdict::Retry(retry_after.min(LONGEST_PAUSE))
        }
        _ => Verdict::Final,
    }
}

/// A status in words, with its causes.
pub(super) fn words(status: &Status) -> String {
    with_causes(format!("{}: {}", name(status.code()), status.message()), status)
}

/// Words for an error, and those of its causes that they do not hold yet.
pub(super) fn with_causes(mut words: String, error: &dyn Error) -> String {
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !words.contains(&cause) {
            words = format!("{words}: {cause}");
        }
        source = error.source();
    }
    words
}

/// gRPC's name of a code.
pub(crate) fn name(code: Code) -> String {
    let camel = format!("{code:?}");
    let mut name = String::new();
    for (index, letter) in camel.char_indices() {
        if index > 0 && letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn from_transport(code: Code) -> Status {
        let mut status = Status::new(code, "broken");
        status.set_source(std::sync::Arc::new(std::io::Error::other("connection reset")));
        status
    }

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        let zero = Verdict::Retry(Duration::ZERO);
        assert_eq!(judge(&Status::unavailable("draining")), zero);
        assert_eq!(judge(&Status::deadline_exceeded("late")), zero);
        assert_eq!(judge(&from_transport(Code::Cancelled)), zero);
        assert_eq!(judge(&from_transport(Code::Unknown)), zero);
    }

    #[test]
    fn what_the_teacher_decided_is_final() {
        for status in [
            Status::cancelled("by the server"),
            Status::invalid_argument("k"),
            Status::internal("forward failed"),
            Status::permission_denied("no"),
            Status::out_of_range("too large"),
            Status::unimplemented("not a teacher"),
        ] {
            assert_eq!(judge(&status), Verdict::Final, "{status}");
        }
    }

    #[test]
    fn a_full_teacher_says_when_to_come_back() {
        let delay = Duration::from_millis(250);
        let details = ErrorDetails::with_retry_info(Some(delay));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        assert_eq!(judge(&status), Verdict::Retry(delay));
    }

    #[test]
    fn words_name_the_code_and_the_cause() {
        assert_eq!(words(&from_transport(Code::Cancelled)), "CANCELLED: broken: connection reset");
        assert_eq!(name(Code::ResourceExhausted), "RESOURCE_EXHAUSTED");
    }
}
