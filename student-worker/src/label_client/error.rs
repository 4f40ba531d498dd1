//! Why soft labels do not come.

use crate::recipe::identity::hex;

/// Why soft labels do not come, or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An address is not one.
    #[error(
        "teacher.endpoints: {address:?} is not an address such as http://teacher:7070: {reason}"
    )]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A token, a certificate or an authority cannot be used.
    #[error("{key}: {file}: {reason}")]
    Credentials {
        /// The recipe's key.
        key: String,
        /// The file.
        file: String,
        /// What is wrong with it, and never what is in it.
        reason: String,
    },
    /// An address is in plaintext, and must not be.
    #[error("{key}: {endpoint}: {reason}; expected https://HOST:PORT")]
    Plaintext {
        /// The recipe's key.
        key: String,
        /// The address.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The teacher is not one for this recipe.
    #[error("teacher {endpoint}: {field} is {found}, expected {expected}")]
    Unsuitable {
        /// Its address.
        endpoint: String,
        /// What it said of itself.
        field: &'static str,
        /// Its value.
        found: String,
        /// What the recipe needs.
        expected: String,
    },
    /// Two teachers are not the same: labels must not be mixed.
    #[error(
        "teacher {endpoint}: its fingerprint is {}, but this run's labels come from {}; \
         labels of two teachers are never mixed",
        hex(found),
        hex(expected)
    )]
    Fingerprint {
        /// The address of the one that was refused.
        endpoint: String,
        /// Its fingerprint.
        found: Vec<u8>,
        /// That of the run.
        expected: Vec<u8>,
    },
    /// Two teachers claim to be the same, and are not.
    #[error(
        "teacher {endpoint}: it has the fingerprint of {other}, but its answer to a probe differs by \
         {difference} {of}, expected at most {allowed}"
    )]
    Disagrees {
        /// The address of the one that was refused.
        endpoint: String,
        /// The address of the one that it was compared with.
        other: String,
        /// Largest difference.
        difference: f32,
        /// What it is a difference of.
        of: &'static str,
        /// What is allowed.
        allowed: f32,
    },
    /// A request was refused for a reason that another try would not mend.
    #[error("teacher {endpoint}: {request} was refused: {code}: {message}")]
    Refused {
        /// The address.
        endpoint: String,
        /// Which request.
        request: String,
        /// gRPC's name of the status.
        code: String,
        /// The teacher's words.
        message: String,
    },
    /// An answer does not fit its request.
    #[error("teacher {endpoint}: the answer to {request} cannot be used: {reason}")]
    Answer {
        /// The address.
        endpoint: String,
        /// Which request.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There are no more labels, although more were expected.
    #[error("the labels ended before the run did")]
    Ended,
    /// No teacher is connected any more, and the recipe does not wait for one.
    #[error(
        "no teacher is connected (teacher.on_teacher_loss = \"fail\"); the last failure: {last}"
    )]
    Lost {
        /// What failed last.
        last: String,
    },
    /// No teacher answered for as long as the recipe allows.
    #[error(
        "no labels for {seconds:.0} s (teacher.retry.max_elapsed_seconds); the last failure: {last}"
    )]
    Unreachable {
        /// How long.
        seconds: f64,
        /// What failed last.
        last: String,
    },
}
