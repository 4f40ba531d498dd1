//! The binary version of CIFAR-10: records of a label and the planes of an image.
//!
//! Format: <https://www.cs.toronto.edu/~kriz/cifar.html>, "Binary version". Files are read plain or
//! gzip-compressed.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    DataError, Dataset, Fit, Split,
    file::{self, Fault, FileError},
};

/// Channels (red, green, blue), height and width.
const SHAPE: [usize; 3] = [3, 32, 32];
/// Bytes of a record: one label, then the planes.
const RECORD: usize = 1 + 3 * 32 * 32;
/// Most records of a file, about 2 GB: a compressed file can hold any number of zeros.
const MAX_RECORDS: usize = 700_000;

/// The files of one part of the dataset in a folder, by the names that it is distributed under, with
/// or without `.gz`.
///
/// # Errors
/// If one is missing; the error names it.
pub(super) fn find(folder: &Path, split: Split) -> Result<Vec<PathBuf>, DataError> {
    const BATCHES: [&str; 5] = [
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ];
    let names = match split {
        Split::Train => &BATCHES[..],
        Split::Test => &["test_batch.bin"],
    };
    names.iter().map(|name| file::find(folder, name)).collect()
}

/// Reads files, one after the other. Without `labelled` the label of a record is passed over.
///
/// # Errors
/// If a file cannot be read, ends within a record, or has none, or an image or a label does not fit.
pub(super) fn read(files: &[PathBuf], fit: &Fit, labelled: bool) -> Result<Dataset, DataError> {
    let (mut planes, mut labels) = (Vec::new(), labelled.then(Vec::new));
    for file in files {
        fit.check_shape(SHAPE).map_err(|fault| fault.in_file(file))?;
        let from = file::open(file)?;
        append(file, from, fit, &mut planes, labels.as_mut())?;
    }
    let last = files.last().map_or(Path::new(""), PathBuf::as_path);
    Ok(Dataset::new(SHAPE, planes, labels, last)?)
}

/// Appends the records of one file.
fn append(
    file: &Path,
    mut from: impl Read,
    fit: &Fit,
    planes: &mut Vec<u8>,
    mut labels: Option<&mut Vec<u32>>,
) -> Result<(), FileError> {
    let mut record = Vec::with_capacity(RECORD);
    for row in 0.. {
        record.clear();
        let part = from.by_ref().take(RECORD as u64);
        { part }.read_to_end(&mut record).map_err(FileError::reading(file))?;
        let fault = match record.split_first() {
            None if row == 0 => Fault::new("records", 0, "1 or more"),
            None => break,
            Some(_) if row == MAX_RECORDS => {
                Fault::new("records", format!("more than {row}"), format!("at most {row}"))
            }
            Some((_, image)) if image.len() < RECORD - 1 => {
                Fault::new("bytes", record.len(), RECORD.to_string()).of_row(row)
            }
            Some((label, image)) => {
                if let Some(labels) = &mut labels {
                    let label = fit.check_label(i64::from(*label));
                    labels.push(label.map_err(|fault| fault.of_row(row).in_file(file))?);
                }
                planes.extend_from_slice(image);
                continue;
            }
        };
        return Err(fault.in_file(file));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::idx::tests::gzip;

    const FIT: Fit = Fit { width: 3072, image_shape: Some(SHAPE), classes: 10 };

    /// Records whose pixels tell row, channel and position.
    fn records(labels: &[u8]) -> Vec<u8> {
        let planes = |row: usize| (0..3072).map(move |at| (row * 100 + at / 1024 * 30 + at) as u8);
        let record = |(row, label)| std::iter::once(label).chain(planes(row));
        labels.iter().copied().enumerate().flat_map(record).collect()
    }

    fn read_bytes(bytes: &[u8], labelled: bool) -> Result<Dataset, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("some.bin");
        fs::write(&file, bytes).unwrap();
        read(&[file], &FIT, labelled).map_err(|error| error.to_string())
    }

    #[test]
    fn plain_and_compressed_read_alike() {
        let bytes = records(&[3, 0, 9]);
        let data = read_bytes(&bytes, true).unwrap();
        assert_eq!((data.len(), data.shape()), (3, SHAPE));
        assert_eq!(data.labels(), Some([3, 0, 9].as_slice()));
        assert_eq!(data.row(2), &bytes[2 * RECORD + 1..]);
        assert_eq!(read_bytes(&gzip(&bytes), true).unwrap(), data);
    }

    #[test]
    fn without_labels_any_label_byte_will_do() {
        let bytes = records(&[200]);
        assert_eq!(read_bytes(&bytes, false).unwrap().labels(), None);
        let error = read_bytes(&bytes, true).unwrap_err();
        assert!(error.contains("some.bin: label of row 0 is 200, expected 0 to 9"), "{error}");
    }

    #[test]
    fn a_cut_names_the_row_that_it_is_in() {
        let bytes = records(&[1, 2]);
        let error = read_bytes(&bytes[..RECORD + 10], true).unwrap_err();
        assert!(error.ends_with("some.bin: bytes of row 1 is 10, expected 3073"), "{error}");
        let packed = gzip(&bytes);
        assert!(read_bytes(&packed[..packed.len() - 9], true).is_err());
        let error = read_bytes(&[], true).unwrap_err();
        assert!(error.ends_with("records is 0, expected 1 or more"), "{error}");
    }

    #[test]
    fn another_shape_is_refused_and_names_both() {
        let fit = Fit { width: 784, image_shape: Some([1, 28, 28]), classes: 10 };
        let error = read(&["x.bin".into()], &fit, true).unwrap_err().to_string();
        assert_eq!(error, "x.bin: image shape is 3 x 32 x 32, expected 1 x 28 x 28, the student's");
    }

    #[test]
    fn the_files_of_a_folder_are_found_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for number in 1..=4 {
            let name = format!("data_batch_{number}.bin{}", if number == 2 { ".gz" } else { "" });
            fs::write(folder.path().join(name), records(&[number])).unwrap();
        }
        let error = find(folder.path(), Split::Train).unwrap_err().to_string();
        assert!(error.ends_with("neither `data_batch_5.bin` nor `data_batch_5.bin.gz`"), "{error}");
        fs::write(folder.path().join("data_batch_5.bin"), records(&[5, 6])).unwrap();
        let files = find(folder.path(), Split::Train).unwrap();
        let data = read(&files, &FIT, true).unwrap();
        assert_eq!(data.labels(), Some([1, 2, 3, 4, 5, 6].as_slice()));
        assert!(find(folder.path(), Split::Test).is_err());
    }

    /// As `examples/data/cifar10/SOURCE.md` describes them.
    #[test]
    fn real_images_have_ten_classes() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples/data/cifar10/test_first1000.bin.gz");
        let data = read(&[file], &FIT, true).unwrap();
        assert_eq!(data.len(), 1000);
        // The first images of the test set: cat, ship, ship, airplane, frog.
        assert_eq!(&data.labels().unwrap()[..5], [3, 8, 8, 0, 6]);
    }
}
