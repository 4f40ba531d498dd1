//! From what a recipe says of its data to a dataset.

use std::path::{Path, PathBuf};

use super::{
    DataError, Dataset, Fit, Split, cifar, folder, mnist,
    parquet::{self, Columns},
};
use crate::recipe::{DataFormat, DataSection};

/// Reads one part of the dataset that a recipe names. Files that are named win over the folder,
/// which need not hold them then. Of a training set that is unlabelled the labels are not read.
///
/// # Errors
/// If a file is missing or is not what its format says, or the data do not fit the model.
pub fn read(data: &DataSection, split: Split, fit: &Fit) -> Result<Dataset, DataError> {
    let labelled = split == Split::Test || !data.unlabelled;
    match data.format {
        DataFormat::Mnist => mnist_files(data, split, labelled)?.read(fit),
        DataFormat::Cifar10 => cifar::read(&files(data, split, cifar::find)?, fit, labelled),
        DataFormat::Folder => folder::read(dir(data)?, split, fit, data.unlabelled),
        DataFormat::Parquet => {
            let label = data.label_column.as_deref().unwrap_or(DataSection::LABEL_COLUMN);
            let image = data.image_column.as_deref().unwrap_or(DataSection::IMAGE_COLUMN);
            let columns = Columns { image, label: labelled.then_some(label) };
            parquet::read(&files(data, split, parquet::find)?, columns, fit)
        }
    }
}

fn dir(data: &DataSection) -> Result<&Path, DataError> {
    let missing = || DataError::mismatch("data.dir", "not set", "a path, or all files by name");
    data.dir.as_deref().ok_or_else(missing)
}

/// The files of a format that keeps each part in one or more of them.
fn files(
    data: &DataSection,
    split: Split,
    find: fn(&Path, Split) -> Result<Vec<PathBuf>, DataError>,
) -> Result<Vec<PathBuf>, DataError> {
    let named = match split {
        Split::Train => &data.train_files,
        Split::Test => &data.test_files,
    };
    if named.is_empty() { find(dir(data)?, split) } else { Ok(named.clone()) }
}

fn mnist_files(
    data: &DataSection,
    split: Split,
    labelled: bool,
) -> Result<mnist::Files, DataError> {
    let (images, labels) = match split {
        Split::Train => (&data.train_images, &data.train_labels),
        Split::Test => (&data.test_images, &data.test_labels),
    };
    let pick =
        |named: &Option<PathBuf>, find: fn(Split, &Path) -> Result<PathBuf, DataError>| match named
        {
            Some(named) => Ok(named.clone()),
            None => find(split, dir(data)?),
        };
    let images = pick(images, Split::images)?;
    let labels = labelled.then(|| pick(labels, Split::labels)).transpose()?;
    Ok(mnist::Files { images, labels })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::{idx::tests::idx_bytes, image::tests::grey_png};

    const FIT: Fit = Fit { width: 6, image_shape: None, classes: 10 };

    #[test]
    fn files_that_are_named_win_over_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let named = |name: &str| Some(PathBuf::from(name));
        let mut data = DataSection {
            dir: Some(folder.path().to_owned()),
            train_images: named("images"),
            train_labels: named("labels"),
            ..DataSection::default()
        };
        let found = mnist_files(&data, Split::Train, true).unwrap();
        assert_eq!(found, mnist::Files { images: "images".into(), labels: named("labels") });
        // The folder is asked for the other one only.
        let error = mnist_files(&data, Split::Test, true).unwrap_err().to_string();
        assert!(error.contains("t10k-images-idx3-ubyte"), "{error}");
        data.test_images = named("images");
        let error = mnist_files(&data, Split::Test, true).unwrap_err().to_string();
        assert!(error.contains("t10k-labels-idx1-ubyte"), "{error}");
        let labels = folder.path().join("t10k-labels-idx1-ubyte");
        fs::write(&labels, []).unwrap();
        assert_eq!(mnist_files(&data, Split::Test, true).unwrap().labels, Some(labels));

        let mut data = DataSection { format: DataFormat::Cifar10, ..DataSection::default() };
        data.train_files = vec!["b".into(), "a".into()];
        let found = files(&data, Split::Train, cifar::find).unwrap();
        assert_eq!(found, [PathBuf::from("b"), PathBuf::from("a")]);
        let error = read(&data, Split::Test, &FIT).unwrap_err().to_string();
        assert_eq!(error, "data.dir is not set, expected a path, or all files by name");
    }

    #[test]
    fn labels_of_an_unlabelled_training_set_are_not_read_and_those_of_the_test_set_are() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: Vec<u8>| {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        };
        write("train-images-idx3-ubyte", idx_bytes(&[2, 2, 3], &[7; 12]));
        write("t10k-images-idx3-ubyte", idx_bytes(&[1, 2, 3], &[7; 6]));
        write("t10k-labels-idx1-ubyte", idx_bytes(&[1], &[9]));
        write("train/1.png", grey_png(3, 2, 0));
        write("test/a/1.png", grey_png(3, 2, 0));
        for format in [DataFormat::Mnist, DataFormat::Folder] {
            let mut data =
                DataSection { dir: Some(dir.path().into()), format, ..DataSection::default() };
            assert!(read(&data, Split::Train, &FIT).is_err());
            data.unlabelled = true;
            assert_eq!(read(&data, Split::Train, &FIT).unwrap().labels(), None);
            assert!(read(&data, Split::Test, &FIT).unwrap().labels().is_some());
        }
    }
}
