//! Images as rows of bytes, and their labels.

use std::{
    fmt::{self, Display},
    path::{Path, PathBuf},
};

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use stillhouse_nn::ModelConfig;

use super::file::{Fault, FileError};

/// Bytes before a request's rows, half a page. A message is a buffer that begins with a few bytes of its own,
/// then a copy of the rows. Large buffers begin where pages do, and glibc copies this much with `rep movsb`,
/// which on AMD's Zen 3 is twenty times slower where the copy lies a few bytes, modulo 4,096, past the original
/// (glibc bug 30994).
const LEAD: usize = 2 << 10;

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// One of its files is not what it should be.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that belongs to the dataset is not in its folder.
    #[error("data.dir: {} has neither `{name}` nor `{name}.gz`", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The file, without the ending of compressed ones.
        name: &'static str,
    },
    /// A folder has no file of the kind that the dataset's format asks for.
    #[error("data.dir: {} has no {expected}", folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
        /// What it should have.
        expected: String,
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

impl DataError {
    /// A value that does not go with the data.
    pub(crate) fn mismatch(
        field: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Mismatch { field: field.into(), found: found.to_string(), expected: expected.into() }
    }
}

/// What a model asks of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Elements per row.
    pub width: usize,
    /// Channels, height and width of a row; none: any row of that many elements.
    pub image_shape: Option<[usize; 3]>,
    /// Labels are below this.
    pub classes: usize,
}

impl Fit {
    /// Of a model.
    pub fn of(model: &ModelConfig) -> Self {
        Self {
            width: model.input_width(),
            image_shape: model.image_shape(),
            classes: model.classes(),
        }
    }

    /// What two models ask together; none if no data fit both.
    pub(crate) fn with(self, other: Self) -> Option<Self> {
        let image_shape = self.image_shape.or(other.image_shape);
        let both = Self { image_shape, ..self };
        (both == Self { image_shape: other.image_shape.or(image_shape), ..other }).then_some(both)
    }

    /// Refuses images of another shape than the model's.
    pub(super) fn check_shape(&self, shape: [usize; 3]) -> Result<(), Fault> {
        let refused = |expected| Err(Fault::new("image shape", by(&shape), expected));
        match self.image_shape {
            Some(expected) if expected != shape => {
                refused(format!("{}, the student's", by(&expected)))
            }
            // A product that overflows is no width.
            None if product(shape) != Some(self.width) => {
                refused(format!("{} values, the student's input_size", self.width))
            }
            _ => Ok(()),
        }
    }

    /// Takes a label that the model has a class for.
    pub(super) fn check_label(&self, label: i64) -> Result<u32, Fault> {
        let within = u32::try_from(label).ok().filter(|label| (*label as usize) < self.classes);
        within.ok_or_else(|| {
            let last = self.classes.max(1) - 1;
            Fault::new("label", label, format!("0 to {last}, the student's num_labels less 1"))
        })
    }
}

impl Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.image_shape {
            Some(shape) => write!(f, "{} images", by(shape))?,
            None => write!(f, "{} values", self.width)?,
        }
        write!(f, " and {} classes", self.classes)
    }
}

fn product(shape: [usize; 3]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))
}

/// Sizes, such as 1 x 28 x 28.
pub(super) fn by(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

/// Images of unsigned bytes, with one label each or none at all. Kept as bytes: a quarter of the
/// memory of f32, and what goes to a teacher that takes bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    shape: [usize; 3],
    /// One row after the other; a row holds whole planes, channel by channel, each row-major.
    features: Vec<u8>,
    labels: Option<Vec<u32>>,
    rows: usize,
}

impl Dataset {
    /// Images of `shape` (channels, height, width), one after the other, as many as there are
    /// labels where there are any.
    ///
    /// # Errors
    /// If there is no image, there are more than 2^32 - 1 of them, their bytes are not whole rows,
    /// or there is another number of labels.
    pub(super) fn new(
        shape: [usize; 3],
        features: Vec<u8>,
        labels: Option<Vec<u32>>,
        file: &Path,
    ) -> Result<Self, FileError> {
        let refused =
            |field, found, expected: String| Err(Fault::new(field, found, expected).in_file(file));
        let width = product(shape).unwrap_or(0);
        let rows = features.len().checked_div(width).unwrap_or(0);
        if rows == 0 || u32::try_from(rows).is_err() {
            return refused("images", rows, "1 to 4294967295".into());
        }
        if !features.len().is_multiple_of(width) {
            return refused("bytes", features.len(), format!("a multiple of {width}"));
        }
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != rows) {
            return refused("labels", labels.len(), format!("{rows}, the number of images"));
        }
        Ok(Self { shape, features, labels, rows })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row; never so for a dataset that was read.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Channels, height and width of every row.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Elements per row.
    pub fn width(&self) -> usize {
        self.shape.iter().product()
    }

    /// The label of every row; none for unlabelled data.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// The dataset that holds these rows only, in this order. Rows that do not exist are left out.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        let rows: Vec<u32> =
            rows.iter().copied().filter(|row| (*row as usize) < self.len()).collect();
        let mut features = Vec::with_capacity(rows.len() * self.width());
        self.add(&rows, &mut features);
        Self { shape: self.shape, features, labels: self.gather_labels(&rows), rows: rows.len() }
    }

    /// The bytes of these rows, one after the other.
    pub fn gather(&self, rows: &[u32]) -> Bytes {
        request_rows(rows.len() * self.width(), |bytes| self.add(rows, bytes))
    }

    fn add(&self, rows: &[u32], bytes: &mut Vec<u8>) {
        for row in rows {
            bytes.extend_from_slice(self.row(*row));
        }
    }

    /// These rows as the student sees them: each byte times `rescale_factor`, `[rows, width]`.
    pub fn gather_f32(&self, rows: &[u32], rescale_factor: f64) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows.len() * self.width());
        for row in rows {
            values.extend(rescale(self.row(*row), rescale_factor));
        }
        values
    }

    /// The labels of these rows; none for unlabelled data.
    pub fn gather_labels(&self, rows: &[u32]) -> Option<Vec<u32>> {
        let labels = self.labels.as_ref()?;
        Some(rows.iter().map(|row| labels[*row as usize]).collect())
    }

    /// SHA-256 over shape, features and labels: tells whether a run goes on with the same data.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for size in self.shape {
            hash.update((size as u64).to_le_bytes());
        }
        hash.update(&self.features);
        hash.update([u8::from(self.labels.is_some())]);
        for label in self.labels.iter().flatten() {
            hash.update(label.to_le_bytes());
        }
        hash.finalize().into()
    }

    /// The bytes of a row.
    pub(super) fn row(&self, row: u32) -> &[u8] {
        let start = row as usize * self.width();
        &self.features[start..start + self.width()]
    }
}

/// A request's rows, `bytes` of them, which `add` adds to a buffer.
pub(crate) fn request_rows(bytes: usize, add: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut rows = Vec::with_capacity(LEAD + bytes);
    rows.resize(LEAD, 0);
    add(&mut rows);
    let mut rows = Bytes::from(rows);
    rows.advance(LEAD);
    rows
}

/// Bytes as the student sees them.
pub(super) fn rescale(bytes: &[u8], rescale_factor: f64) -> impl Iterator<Item = f32> {
    let scale = rescale_factor as f32;
    bytes.iter().map(move |byte| f32::from(*byte) * scale)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `rows` rows of `width` bytes that differ, labelled by row number modulo `classes`.
    pub(crate) fn sample(rows: usize, width: usize, classes: usize) -> Dataset {
        images(rows, [1, 1, width], classes)
    }

    /// As [`sample`], of a shape.
    pub(crate) fn images(rows: usize, shape: [usize; 3], classes: usize) -> Dataset {
        let bytes = (0..rows * shape.iter().product::<usize>()).map(|i| (i * 7 % 251) as u8);
        let labels = (0..rows).map(|row| (row % classes) as u32).collect();
        Dataset::new(shape, bytes.collect(), Some(labels), Path::new("sample")).unwrap()
    }

    /// The same rows without their labels.
    pub(crate) fn unlabelled(data: &Dataset) -> Dataset {
        Dataset { labels: None, ..data.clone() }
    }

    #[test]
    fn rows_come_back_as_bytes_and_rescaled() {
        let features = vec![0, 51, 102, 153, 204, 255];
        let data =
            Dataset::new([1, 1, 2], features, Some(vec![7, 8, 9]), Path::new("file")).unwrap();
        assert_eq!((data.len(), data.width(), data.shape()), (3, 2, [1, 1, 2]));
        assert_eq!(data.gather(&[2, 0]), [204, 255, 0, 51].as_slice());
        assert!(data.gather(&[]).is_empty());
        assert_eq!(data.gather_labels(&[2, 0]), Some(vec![9, 7]));
        let scaled = data.gather_f32(&[1], 1.0 / 255.0);
        assert!((scaled[0] - 0.4).abs() < 1e-6 && (scaled[1] - 0.6).abs() < 1e-6, "{scaled:?}");
        let selected = data.select(&[1, 9]);
        assert_eq!((selected.len(), selected.gather(&[0])), (1, vec![102, 153].into()));
        let bare = unlabelled(&data);
        assert_eq!((bare.labels(), bare.gather_labels(&[0]), bare.len()), (None, None, 3));
        assert_eq!(bare.select(&[2]).len(), 1);
    }

    #[test]
    fn what_does_not_fit_names_both() {
        let mlp = Fit { width: 784, image_shape: None, classes: 10 };
        assert_eq!(mlp.check_shape([1, 28, 28]), Ok(()));
        assert_eq!(
            mlp.check_shape([3, 32, 32]).unwrap_err().to_string(),
            "image shape is 3 x 32 x 32, expected 784 values, the student's input_size"
        );
        assert!(mlp.check_shape([usize::MAX, 2, 2]).is_err());
        let images = Fit { width: 3072, image_shape: Some([3, 32, 32]), ..mlp };
        assert_eq!(images.check_shape([3, 32, 32]), Ok(()));
        assert_eq!(
            images.check_shape([32, 32, 3]).unwrap_err().to_string(),
            "image shape is 32 x 32 x 3, expected 3 x 32 x 32, the student's"
        );
        assert_eq!(mlp.check_label(9), Ok(9));
        for label in [10, -1, 1 << 32] {
            let error = mlp.check_label(label).unwrap_err().of_row(3).to_string();
            assert!(error.starts_with(&format!("label of row 3 is {label}, expected 0 to 9, the")));
        }
    }

    #[test]
    fn the_hash_sees_every_byte() {
        let data = images(4, [1, 2, 3], 2);
        let mut other = data.clone();
        other.features[5] ^= 1;
        assert_ne!(data.sha256(), other.sha256());
        other = data.clone();
        other.labels.as_mut().unwrap()[3] ^= 1 << 8;
        assert_ne!(data.sha256(), other.sha256());
        assert_ne!(data.sha256(), unlabelled(&data).sha256());
        other = data.clone();
        other.shape = [1, 3, 2];
        assert_ne!(data.sha256(), other.sha256());
    }
}
