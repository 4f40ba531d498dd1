//! The two parts of a dataset.

/// One of the two parts of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Rows to train on.
    Train,
    /// Rows to test on.
    Test,
}

impl Split {
    /// What its folder or its files are called, the first that is there.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train"],
            Self::Test => &["test", "validation", "val"],
        }
    }
}
