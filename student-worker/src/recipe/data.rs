//! What the values of `[data]` must be, beyond their types.

use super::{
    DataFormat, DataSection, Recipe,
    teacher::OnTeacherLoss,
    validate::{Invalid, check, require},
};

/// Checks every value of the section.
pub(super) fn validate(recipe: &Recipe) -> Result<(), Invalid> {
    let data = &recipe.data;
    of_the_format(data)?;
    files(data)?;
    rows(recipe)?;
    let padding = data.augment.crop_padding;
    let moves_twice = data.augment.shift > 0 && padding > 0;
    let expected = "none beside shift, which moves images in the same way";
    check(!moves_twice, "data.augment.crop_padding", padding, expected)
}

/// Refuses keys of another format.
fn of_the_format(data: &DataSection) -> Result<(), Invalid> {
    let expected = format!("none with format = \"{}\"", data.format.name());
    if data.format != DataFormat::Mnist {
        for (key, path) in mnist_files(data) {
            check(path.is_none(), key, "a path", &expected)?;
        }
    }
    if matches!(data.format, DataFormat::Mnist | DataFormat::Folder) {
        for (key, files) in lists(data) {
            check(files.is_empty(), key, format!("{} files", files.len()), &expected)?;
        }
    }
    let columns =
        [("data.image_column", &data.image_column), ("data.label_column", &data.label_column)];
    for (key, column) in columns {
        if let Some(column) = column {
            check(data.format == DataFormat::Parquet, key, format!("{column:?}"), &expected)?;
        }
    }
    Ok(())
}

/// Without a folder every file must be named.
fn files(data: &DataSection) -> Result<(), Invalid> {
    if data.dir.is_some() {
        return Ok(());
    }
    match data.format {
        DataFormat::Mnist => {
            let unread = |key: &str| data.unlabelled && key == "data.train_labels";
            for (key, path) in mnist_files(data).into_iter().filter(|(key, _)| !unread(key)) {
                require(path, key, "a path, or data.dir")?;
            }
            Ok(())
        }
        DataFormat::Folder => require(data.dir.as_ref(), "data.dir", "a path"),
        DataFormat::Cifar10 | DataFormat::Parquet => {
            for (key, files) in lists(data) {
                check(!files.is_empty(), key, "an empty list", "one file or more, or data.dir")?;
            }
            Ok(())
        }
    }
}

fn mnist_files(data: &DataSection) -> [(&'static str, Option<&std::path::PathBuf>); 4] {
    [
        ("data.train_images", data.train_images.as_ref()),
        ("data.train_labels", data.train_labels.as_ref()),
        ("data.test_images", data.test_images.as_ref()),
        ("data.test_labels", data.test_labels.as_ref()),
    ]
}

fn lists(data: &DataSection) -> [(&'static str, &[std::path::PathBuf]); 2] {
    [("data.train_files", &data.train_files), ("data.test_files", &data.test_files)]
}

/// Which rows are trained on, and whether their labels are needed.
fn rows(recipe: &Recipe) -> Result<(), Invalid> {
    let data = &recipe.data;
    if let Some(epoch) = recipe.epoch_with_hard_labels() {
        let expected = format!(
            "false where the loss has a term for hard labels, as in epoch {epoch}: a [teacher] and \
             loss.alpha = 1 are needed throughout"
        );
        check(!data.unlabelled, "data.unlabelled", data.unlabelled, &expected)?;
    }
    let alone =
        recipe.teacher.as_ref().map(|of| of.on_teacher_loss) == Some(OnTeacherLoss::HardLabels);
    let expected = "wait or fail with data.unlabelled: there are no hard labels to go on with";
    let key = "teacher.on_teacher_loss";
    check(!(alone && data.unlabelled), key, "\"hard-labels\"", expected)?;
    let classes = recipe.student.classes();
    let range = format!("0 to {}, the student's classes", classes.max(1) - 1);
    let kept = data.keep.as_deref();
    check(kept != Some(&[]), "data.keep", "an empty list", "one class or more")?;
    for (key, list) in [("data.leave_out", &data.leave_out[..]), ("data.keep", kept.unwrap_or(&[]))]
    {
        for class in list {
            check((*class as usize) < classes, key, class, &range)?;
        }
        let expected = "none where data.unlabelled = true";
        check(list.is_empty() || !data.unlabelled, key, format!("{list:?}"), expected)?;
    }
    if let Some(fraction) = data.fraction {
        let within = fraction > 0.0 && fraction <= 1.0;
        check(within, "data.fraction", fraction, "above 0, at most 1")?;
    }
    if let Some(rows) = data.train_rows {
        let key = "data.train_rows";
        check(rows >= 1, key, rows, "1 or more")?;
        check(data.fraction.is_none(), key, rows, "none beside data.fraction")?;
        let expected = "none where data.unlabelled = true; data.fraction needs no classes";
        check(!data.unlabelled, key, rows, expected)?;
    }
    Ok(())
}
