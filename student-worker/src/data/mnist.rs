//! The four files of MNIST: where they are, and what is in them.

use std::path::{Path, PathBuf};

use super::{
    DataError, Dataset, Fit, Split,
    file::{self, Fault, FileError},
    idx,
};

impl Split {
    /// Finds the images in a folder by the name that the dataset is distributed under, with or
    /// without `.gz`.
    ///
    /// # Errors
    /// If they are not there.
    pub fn images(self, folder: &Path) -> Result<PathBuf, DataError> {
        file::find(folder, self.stems().0)
    }

    /// Finds the labels, as [`Self::images`].
    ///
    /// # Errors
    /// If they are not there.
    pub fn labels(self, folder: &Path) -> Result<PathBuf, DataError> {
        file::find(folder, self.stems().1)
    }

    /// Names of images and labels.
    fn stems(self) -> (&'static str, &'static str) {
        match self {
            Self::Train => ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            Self::Test => ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        }
    }
}

/// The idx files of one part: images and, unless it is unlabelled, their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Pixels, `[rows, height, width]`.
    pub images: PathBuf,
    /// Classes, `[rows]`.
    pub labels: Option<PathBuf>,
}

impl Files {
    /// Finds the files of one part by the names that the dataset is distributed under, with or
    /// without `.gz`.
    ///
    /// # Errors
    /// If one is missing; the error names it.
    pub fn find(folder: &Path, split: Split) -> Result<Self, DataError> {
        Ok(Self { images: split.images(folder)?, labels: Some(split.labels(folder)?) })
    }

    /// Reads them, as images of one channel.
    ///
    /// # Errors
    /// If a file is not a valid idx file, they differ in the number of rows, there is no row, or an
    /// image or a label does not fit.
    pub fn read(&self, fit: &Fit) -> Result<Dataset, DataError> {
        let images = idx::read(&self.images, 3)?;
        let shape = [1, images.shape[1], images.shape[2]];
        if images.shape[0] > 0 {
            fit.check_shape(shape).map_err(|fault| fault.in_file(&self.images))?;
        }
        let labels = match &self.labels {
            Some(file) => Some(self.read_labels(file, images.shape[0], fit)?),
            None => None,
        };
        Ok(Dataset::new(shape, images.elements, labels, &self.images)?)
    }

    fn read_labels(&self, file: &Path, rows: usize, fit: &Fit) -> Result<Vec<u32>, FileError> {
        let labels = idx::read(file, 1)?.elements;
        if labels.len() != rows {
            let expected = format!("{rows}, as many as {} has images", self.images.display());
            return Err(Fault::new("labels", labels.len(), expected).in_file(file));
        }
        let label = |(row, label): (usize, &u8)| {
            let label = fit.check_label(i64::from(*label));
            label.map_err(|fault| fault.of_row(row).in_file(file))
        };
        labels.iter().enumerate().map(label).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::idx::tests::{gzip, idx_bytes};

    #[test]
    fn files_are_found_plain_or_compressed_and_the_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("t10k-images-idx3-ubyte.gz"), []).unwrap();
        let error = Files::find(folder.path(), Split::Test).unwrap_err().to_string();
        assert!(error.contains("neither `t10k-labels-idx1-ubyte` nor"), "{error}");
        fs::write(folder.path().join("t10k-labels-idx1-ubyte"), []).unwrap();
        let files = Files::find(folder.path(), Split::Test).unwrap();
        assert!(files.images.ends_with("t10k-images-idx3-ubyte.gz"));
        assert!(files.labels.unwrap().ends_with("t10k-labels-idx1-ubyte"));
    }

    fn read(images: &[u8], labels: Option<&[u8]>, width: usize) -> Result<Dataset, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("images"), images).unwrap();
        fs::write(path("labels"), labels.unwrap_or_default()).unwrap();
        let files = Files { images: path("images"), labels: labels.map(|_| path("labels")) };
        let fit = Fit { width, image_shape: None, classes: 10 };
        files.read(&fit).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_are_images_of_one_channel_with_or_without_labels() {
        let images = idx_bytes(&[3, 1, 2], &[0, 51, 102, 153, 204, 255]);
        let data = read(&images, Some(&gzip(&idx_bytes(&[3], &[7, 8, 9]))), 2).unwrap();
        assert_eq!((data.len(), data.shape()), (3, [1, 1, 2]));
        assert_eq!(data.gather(&[2, 0]), [204, 255, 0, 51].as_slice());
        assert_eq!(data.labels(), Some([7, 8, 9].as_slice()));
        assert_eq!(read(&images, None, 2).unwrap().labels(), None);
    }

    #[test]
    fn a_label_outside_the_range_names_file_row_and_value() {
        let images = idx_bytes(&[2, 1, 1], &[1, 2]);
        let error = read(&images, Some(&idx_bytes(&[2], &[9, 10])), 1).unwrap_err();
        assert!(error.contains("labels: label of row 1 is 10, expected 0 to 9"), "{error}");
    }

    #[test]
    fn images_and_labels_must_agree_in_number_and_width() {
        let images = idx_bytes(&[2, 1, 1], &[1, 2]);
        let error = read(&images, Some(&idx_bytes(&[3], &[0; 3])), 1).unwrap_err();
        assert!(error.contains("labels: labels is 3, expected 2"), "{error}");
        let error = read(&images, Some(&idx_bytes(&[2], &[0; 2])), 784).unwrap_err();
        let expected = "images: image shape is 1 x 1 x 1, expected 784 values";
        assert!(error.contains(expected), "{error}");
        let none = (idx_bytes(&[0, 1, 1], &[]), idx_bytes(&[0], &[]));
        let error = read(&none.0, Some(&none.1), 1).unwrap_err();
        assert!(error.contains("images: images is 0, expected 1 to 4294967295"), "{error}");
    }
}
