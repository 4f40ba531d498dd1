//! What fuzzers and their corpora run: any bytes are a value or an error.

/// An IDX file of one to four dimensions, as it is and as what a compressed one unpacks to.
pub fn idx(bytes: &[u8]) {
    crate::data::idx::fuzzed(bytes);
}

/// The manifest of captured labels, and records that it describes.
pub fn label_archive(bytes: &[u8]) {
    crate::capture::fuzzed(bytes);
}
