//! Folders of image files, one folder for each class.
//!
//! Classes are numbered in the order of the folders' names, byte by byte: as in torchvision's
//! `ImageFolder` and the `imagefolder` of Hugging Face's datasets. Names are those of both parts
//! together, as the latter has it, so that a class which one part lacks moves no number. What these
//! would read and this does not is refused: a class with no image, a folder within a class, an image of
//! another format.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use super::{
    DataError, Dataset, Fit, Split,
    file::{Fault, FileError},
    image::Rows,
};

/// Endings of image files, in any case.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];
/// Endings of those that are not read.
const OTHERS: [&str; 8] = ["bmp", "gif", "pgm", "ppm", "tif", "tiff", "webp", "avif"];
/// Most bytes of an image file.
const MAX_FILE: u64 = 64 << 20;

/// Reads one part: `train`, or the first there is of `test`, `validation` and `val`. Files are taken
/// class by class, in the order of their names. Where `train` is `unlabelled`, images that lie in its
/// own folder come first, and the folders in it are no classes.
///
/// # Errors
/// If the folder or an image in it cannot be read, there is no image, there are more classes than
/// the model has, or an image does not fit.
pub(super) fn read(
    dir: &Path,
    split: Split,
    fit: &Fit,
    unlabelled: bool,
) -> Result<Dataset, DataError> {
    let labelled = split == Split::Test || !unlabelled;
    let folder = part(dir, split).ok_or_else(|| {
        let names: Vec<_> = split.names().iter().map(|name| format!("`{name}`")).collect();
        DataError::Empty {
            folder: dir.to_owned(),
            expected: format!("folder {}", names.join(" or ")),
        }
    })?;
    let with_classes = if unlabelled { &[Split::Test][..] } else { &[Split::Train, Split::Test] };
    let classes = if labelled { classes(dir, with_classes)? } else { subfolders(&folder)? };
    if labelled && classes.len() > fit.classes {
        let expected = format!("at most {}, the student's num_labels", fit.classes);
        return Err(Fault::new("class folders", classes.len(), expected).in_file(dir).into());
    }
    let (mut rows, mut labels) = (Rows::new(*fit), labelled.then(Vec::new));
    if !labelled {
        push_all(&mut rows, &images(&folder)?)?;
    }
    for (label, class) in (0..).zip(&classes) {
        let class = folder.join(class);
        if !class.is_dir() {
            continue;
        }
        let files = class_images(&class)?;
        push_all(&mut rows, &files)?;
        if let Some(labels) = &mut labels {
            labels.extend(files.iter().map(|_| label));
        }
    }
    let (shape, planes) = rows.finish();
    let Some(shape) = shape.filter(|_| !planes.is_empty()) else {
        let mut expected = format!("image ({}) in a folder of its class", ENDINGS.join(", "));
        if labelled && !images(&folder)?.is_empty() {
            expected += "; images without a class need data.unlabelled = true";
        }
        return Err(DataError::Empty { folder, expected });
    };
    Ok(Dataset::new(shape, planes, labels, &folder)?)
}

/// The folder of one part.
fn part(dir: &Path, split: Split) -> Option<PathBuf> {
    split.names().iter().map(|name| dir.join(name)).find(|folder| folder.is_dir())
}

/// Names of the folders in these parts, sorted. Each must hold an image in one of them.
fn classes(dir: &Path, parts: &[Split]) -> Result<Vec<OsString>, FileError> {
    let mut classes = BTreeSet::new();
    let mut empty = Vec::new();
    for folder in parts.iter().filter_map(|split| part(dir, *split)) {
        for class in subfolders(&folder)? {
            let within = folder.join(&class);
            if class_images(&within)?.is_empty() {
                empty.push((class, within));
            } else {
                classes.insert(class);
            }
        }
    }
    match empty.into_iter().find(|(class, _)| !classes.contains(class)) {
        None => Ok(classes.into_iter().collect()),
        Some((_, folder)) => {
            let expected = format!("one or more ({}) of the class", ENDINGS.join(", "));
            Err(Fault::new("images", 0, expected).in_file(&folder))
        }
    }
}

/// Names of the folders in a folder, sorted.
fn subfolders(folder: &Path) -> Result<Vec<OsString>, FileError> {
    Ok(names(folder)?.into_iter().filter(|name| folder.join(name).is_dir()).collect())
}

/// The image files in a folder, sorted.
fn images(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let files = names(folder)?.into_iter().map(|name| folder.join(name));
    Ok(files.filter(|file| ends_as(file, &ENDINGS) && file.is_file()).collect())
}

/// The same of a folder in which nothing is to be passed over.
fn class_images(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    for name in names(folder)? {
        let path = folder.join(&name);
        let found = if path.is_dir() {
            format!("the folder {}", name.display())
        } else if ends_as(&path, &OTHERS) {
            name.display().to_string()
        } else {
            continue;
        };
        let expected = format!("images only ({})", ENDINGS.join(", "));
        return Err(Fault::new("in it", found, expected).in_file(folder));
    }
    images(folder)
}

/// Whether a file's ending is one of these, in any case.
fn ends_as(file: &Path, endings: &[&str]) -> bool {
    let ending = file.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| endings.iter().any(|known| known.eq_ignore_ascii_case(ending)))
}

/// Names in a folder that are not hidden, sorted.
fn names(folder: &Path) -> Result<Vec<OsString>, FileError> {
    let failed = FileError::reading(folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn push_all(rows: &mut Rows, files: &[PathBuf]) -> Result<(), FileError> {
    let mut encoded = Vec::new();
    for file in files {
        encoded.clear();
        let failed = FileError::reading(file);
        let from = File::open(file).map_err(&failed)?;
        from.take(MAX_FILE + 1).read_to_end(&mut encoded).map_err(&failed)?;
        if encoded.len() as u64 > MAX_FILE {
            let expected = format!("at most {MAX_FILE}");
            return Err(
                Fault::new("bytes", format!("more than {MAX_FILE}"), expected).in_file(file)
            );
        }
        rows.push(&encoded).map_err(|fault| fault.in_file(file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::tests::grey_png;

    const FIT: Fit = Fit { width: 6, image_shape: None, classes: 10 };

    fn write(dir: &Path, files: &[(&str, Vec<u8>)]) {
        for (name, bytes) in files {
            let file = dir.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
    }

    fn read_part(dir: &Path, split: Split, labelled: bool) -> Result<Dataset, String> {
        read(dir, split, &FIT, !labelled).map_err(|error| error.to_string())
    }

    #[test]
    fn classes_and_files_are_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let png = |first| grey_png(3, 2, first);
        write(
            dir.path(),
            &[
                ("train/cat/b.png", png(2)),
                ("train/cat/a.PNG", png(1)),
                ("train/Zebra/1.png", png(3)),
                ("train/ant/10.png", png(5)),
                ("train/ant/9.png", png(6)),
                // None of these counts.
                ("train/ant/notes.txt", vec![1]),
                ("train/ant/.hidden.png", vec![1]),
                ("train/dog/notes.txt", vec![1]),
                ("train/stray.png", vec![1]),
                ("train/stray.webp", vec![1]),
                ("val/dog/x.png", png(7)),
            ],
        );
        let train = read_part(dir.path(), Split::Train, true).unwrap();
        assert_eq!(train.shape(), [1, 2, 3]);
        // Zebra, ant, cat, dog: capital letters come first.
        assert_eq!(train.labels(), Some([0, 1, 1, 2, 2].as_slice()));
        let first: Vec<u8> = (0..5).map(|row| train.row(row)[0]).collect();
        assert_eq!(first, [3, 5, 6, 1, 2]);
        let test = read_part(dir.path(), Split::Test, true).unwrap();
        assert_eq!(test.labels(), Some([3].as_slice()));
    }

    #[test]
    fn unlabelled_images_need_no_class() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("train/b.png", grey_png(3, 2, 1)), ("train/a.png", grey_png(3, 2, 2))];
        write(dir.path(), &files);
        let error = read_part(dir.path(), Split::Train, true).unwrap_err();
        assert!(error.ends_with("a class need data.unlabelled = true"), "{error}");
        write(dir.path(), &[("train/more/c.png", grey_png(3, 2, 3))]);
        let data = read_part(dir.path(), Split::Train, false).unwrap();
        assert_eq!((data.labels(), data.len()), (None, 3));
        assert_eq!((data.row(0)[0], data.row(2)[0]), (2, 3));
        // Its folders are no classes, and move no number of those.
        write(dir.path(), &[("test/zebra/1.png", grey_png(3, 2, 4))]);
        let test = read_part(dir.path(), Split::Test, false).unwrap();
        assert_eq!(test.labels(), Some([0].as_slice()));
        let test = read_part(dir.path(), Split::Test, true).unwrap();
        assert_eq!(test.labels(), Some([1].as_slice()));
    }

    /// torchvision and Hugging Face's datasets would give these a number or a row.
    #[test]
    fn nothing_that_others_would_read_is_passed_over() {
        let png = || grey_png(3, 2, 1);
        for (more, expected) in [
            (("train/empty/notes.txt", vec![1]), "train/empty: images is 0, expected one or more"),
            (("val/cat/more/b.png", png()), "val/cat: in it is the folder more, expected images"),
            (("train/dog/b.WebP", vec![1]), "train/dog: in it is b.WebP, expected images only"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &[("train/cat/a.png", png()), ("val/dog/a.png", png()), more]);
            for split in [Split::Train, Split::Test] {
                let error = read_part(dir.path(), split, true).unwrap_err();
                assert!(error.contains(expected), "{error}");
            }
        }
    }

    #[test]
    fn what_is_wrong_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_part(dir.path(), Split::Test, true).unwrap_err();
        assert!(error.ends_with("has no folder `test` or `validation` or `val`"), "{error}");
        let broken = grey_png(3, 2, 1)[..40].to_vec();
        write(dir.path(), &[("train/a/1.png", grey_png(3, 2, 1)), ("train/b/2.png", broken)]);
        let error = read_part(dir.path(), Split::Train, true).unwrap_err();
        assert!(error.contains("train/b/2.png: image is "), "{error}");
        write(dir.path(), &[("train/b/2.png", grey_png(2, 3, 1))]);
        let error = read_part(dir.path(), Split::Train, true).unwrap_err();
        let expected = "b/2.png: height x width is 3 x 2, expected 2 x 3, as the first image";
        assert!(error.ends_with(expected), "{error}");
        let few = Fit { classes: 1, ..FIT };
        let error = read(dir.path(), Split::Train, &few, false).unwrap_err().to_string();
        assert!(error.contains("class folders is 2, expected at most 1"), "{error}");
    }
}
