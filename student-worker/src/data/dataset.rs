//! Labelled rows of bytes.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::idx::{self, IdxError};

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// One of its files is not what it should be.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// A file that belongs to the dataset is not in its folder.
    #[error("data.dir: {} has neither `{name}` nor `{name}.gz`", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The file, without the ending of compressed ones.
        name: &'static str,
    },
    /// The dataset and the student, or a subset and the dataset, do not fit together.
    #[error("{field} is {found}, expected {expected}")]
    Mismatch {
        /// What differs.
        field: String,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
}

/// Rows of unsigned bytes with one label each. Kept as bytes: a quarter of the memory of f32, and
/// what goes to a teacher that takes bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    width: usize,
    features: Vec<u8>,
    labels: Vec<u8>,
}

impl Dataset {
    /// Reads images and their labels from two idx files.
    ///
    /// # Errors
    /// If a file is not a valid idx file, they differ in the number of rows, the number of pixels
    /// is not `width`, there is no row, or a label is not below `num_labels`.
    pub fn read(
        images: &Path,
        labels: &Path,
        width: usize,
        num_labels: usize,
    ) -> Result<Self, DataError> {
        let pixels = idx::read(images, 3)?;
        let named = idx::read(labels, 1)?;
        let rows = pixels.shape[0];
        let refused = |file: &Path, field: &str, found: String, expected: String| {
            DataError::Idx(IdxError::Field {
                file: file.to_owned(),
                field: field.to_owned(),
                found,
                expected,
            })
        };
        if rows == 0 {
            return Err(refused(images, "images", "0".into(), "1 or more".into()));
        }
        let found = pixels.elements.len() / rows;
        if found != width {
            let expected = format!("{width}, the student's input_size");
            return Err(refused(images, "pixels per image", found.to_string(), expected));
        }
        if named.elements.len() != rows {
            let expected = format!("{rows}, as many as {} has images", images.display());
            return Err(refused(labels, "labels", named.elements.len().to_string(), expected));
        }
        let outside =
            named.elements.iter().enumerate().find(|(_, y)| usize::from(**y) >= num_labels);
        if let Some((row, label)) = outside {
            let expected =
                format!("0 to {}, the student's num_labels less 1", num_labels.max(1) - 1);
            return Err(refused(
                labels,
                &format!("label of row {row}"),
                label.to_string(),
                expected,
            ));
        }
        Ok(Self { width, features: pixels.elements, labels: named.elements })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no row; never so for a dataset that was read.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Elements per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The label of every row.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The dataset that holds these rows only, in this order. Rows that do not exist are left out.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        let rows: Vec<u32> =
            rows.iter().copied().filter(|row| (*row as usize) < self.len()).collect();
        Self {
            width: self.width,
            features: self.gather(&rows).into(),
            labels: rows.iter().map(|row| self.labels[*row as usize]).collect(),
        }
    }

    /// The bytes of these rows, one after the other.
    pub fn gather(&self, rows: &[u32]) -> Bytes {
        let mut bytes = Vec::with_capacity(rows.len() * self.width);
        for row in rows {
            bytes.extend_from_slice(self.row(*row));
        }
        bytes.into()
    }

    /// These rows as the student sees them: each byte times `rescale_factor`, `[rows, width]`.
    pub fn gather_f32(&self, rows: &[u32], rescale_factor: f64) -> Vec<f32> {
        let scale = rescale_factor as f32;
        let row = |row: &u32| self.row(*row).iter().map(move |byte| f32::from(*byte) * scale);
        rows.iter().flat_map(row).collect()
    }

    /// The labels of these rows.
    pub fn gather_labels(&self, rows: &[u32]) -> Vec<u32> {
        rows.iter().map(|row| u32::from(self.labels[*row as usize])).collect()
    }

    /// SHA-256 over width, features and labels: tells whether a run goes on with the same data.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((self.width as u64).to_le_bytes());
        hash.update(&self.features);
        hash.update(&self.labels);
        hash.finalize().into()
    }

    fn row(&self, row: u32) -> &[u8] {
        let start = row as usize * self.width;
        &self.features[start..start + self.width]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::data::idx::tests::{gzip, idx_bytes};

    /// `rows` rows of `width` bytes that differ, labelled by row number modulo `classes`.
    pub(crate) fn sample(rows: usize, width: usize, classes: usize) -> Dataset {
        Dataset {
            width,
            features: (0..rows * width).map(|i| (i * 7 % 251) as u8).collect(),
            labels: (0..rows).map(|row| (row % classes) as u8).collect(),
        }
    }

    fn read(images: &[u8], labels: &[u8], width: usize) -> Result<Dataset, String> {
        let folder = tempfile::tempdir().unwrap();
        let (image_file, label_file) = (folder.path().join("images"), folder.path().join("labels"));
        fs::write(&image_file, images).unwrap();
        fs::write(&label_file, labels).unwrap();
        Dataset::read(&image_file, &label_file, width, 10).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_come_back_as_bytes_and_rescaled() {
        let images = idx_bytes(&[3, 1, 2], &[0, 51, 102, 153, 204, 255]);
        let data = read(&images, &gzip(&idx_bytes(&[3], &[7, 8, 9])), 2).unwrap();
        assert_eq!((data.len(), data.width()), (3, 2));
        assert_eq!(data.gather(&[2, 0]), [204, 255, 0, 51].as_slice());
        assert_eq!(data.gather_labels(&[2, 0]), [9, 7]);
        let scaled = data.gather_f32(&[1], 1.0 / 255.0);
        assert!((scaled[0] - 0.4).abs() < 1e-6 && (scaled[1] - 0.6).abs() < 1e-6, "{scaled:?}");
        assert_eq!(data.select(&[1, 9]).gather(&[0]), [102, 153].as_slice());
    }

    #[test]
    fn a_label_outside_the_range_names_file_row_and_value() {
        let images = idx_bytes(&[2, 1, 1], &[1, 2]);
        let error = read(&images, &idx_bytes(&[2], &[9, 10]), 1).unwrap_err();
        assert!(error.contains("labels: label of row 1 is 10, expected 0 to 9"), "{error}");
    }

    #[test]
    fn images_and_labels_must_agree_in_number_and_width() {
        let images = idx_bytes(&[2, 1, 1], &[1, 2]);
        let error = read(&images, &idx_bytes(&[3], &[0; 3]), 1).unwrap_err();
        assert!(error.contains("labels: labels is 3, expected 2"), "{error}");
        let error = read(&images, &idx_bytes(&[2], &[0; 2]), 784).unwrap_err();
        assert!(error.contains("images: pixels per image is 1, expected 784"), "{error}");
        let error = read(&idx_bytes(&[0, 1, 1], &[]), &idx_bytes(&[0], &[]), 1).unwrap_err();
        assert!(error.contains("images: images is 0, expected 1 or more"), "{error}");
    }

    #[test]
    fn the_hash_sees_every_byte() {
        let data = sample(4, 3, 2);
        let mut other = data.clone();
        other.features[5] ^= 1;
        assert_ne!(data.sha256(), other.sha256());
        other = data.clone();
        other.labels[3] ^= 1;
        assert_ne!(data.sha256(), other.sha256());
    }
}
