//! Where the four files of MNIST are.

use std::path::{Path, PathBuf};

use super::{DataError, Dataset};

/// One of the two parts of the dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// 60,000 rows to train on.
    Train,
    /// 10,000 rows to test on.
    Test,
}

impl Split {
    /// Finds the images in a folder by the name that the dataset is distributed under, with or
    /// without `.gz`.
    ///
    /// # Errors
    /// If they are not there.
    pub fn images(self, folder: &Path) -> Result<PathBuf, DataError> {
        find(folder, self.names().0)
    }

    /// Finds the labels, as [`Self::images`].
    ///
    /// # Errors
    /// If they are not there.
    pub fn labels(self, folder: &Path) -> Result<PathBuf, DataError> {
        find(folder, self.names().1)
    }

    /// Names of images and labels.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Train => ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            Self::Test => ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        }
    }
}

/// The idx files of one part: images and their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Pixels, `[rows, height, width]`.
    pub images: PathBuf,
    /// Classes, `[rows]`.
    pub labels: PathBuf,
}

impl Files {
    /// Finds the files of one part by the names that the dataset is distributed under, with or
    /// without `.gz`.
    ///
    /// # Errors
    /// If one is missing; the error names it.
    pub fn find(folder: &Path, split: Split) -> Result<Self, DataError> {
        Ok(Self { images: split.images(folder)?, labels: split.labels(folder)? })
    }

    /// Reads them.
    ///
    /// # Errors
    /// As [`Dataset::read`].
    pub fn read(&self, width: usize, num_labels: usize) -> Result<Dataset, DataError> {
        Dataset::read(&self.images, &self.labels, width, num_labels)
    }
}

fn find(folder: &Path, name: &'static str) -> Result<PathBuf, DataError> {
    [folder.join(name), folder.join(format!("{name}.gz"))]
        .into_iter()
        .find(|file| file.is_file())
        .ok_or_else(|| DataError::Missing { folder: folder.to_owned(), name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_plain_or_compressed_and_the_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("t10k-images-idx3-ubyte.gz"), []).unwrap();
        let error = Files::find(folder.path(), Split::Test).unwrap_err().to_string();
        assert!(error.contains("neither `t10k-labels-idx1-ubyte` nor"), "{error}");
        std::fs::write(folder.path().join("t10k-labels-idx1-ubyte"), []).unwrap();
        let files = Files::find(folder.path(), Split::Test).unwrap();
        assert!(files.images.ends_with("t10k-images-idx3-ubyte.gz"));
        assert!(files.labels.ends_with("t10k-labels-idx1-ubyte"));
    }
}
