//! Parquet files as Hugging Face's datasets keep images in them: a column of structs
//! `{bytes, path}`, or of bytes, that hold PNG or JPEG files, and a column of integer labels.
//!
//! Format: <https://parquet.apache.org/docs/file-format/>. Snappy or no compression, plain or
//! dictionary encoding, which is what `datasets` and pyarrow write unless told otherwise.

mod column;
mod pages;

use std::{
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

pub(crate) use column::Cell;
use column::{Column, Value};
use parquet::file::reader::{FileReader as _, SerializedFileReader};

use super::{
    DataError, Dataset, Fit, Split,
    file::{Fault, FileError},
    image::Rows,
};

/// Rows that are decoded at once.
const CHUNK: usize = 64;
/// Most bytes that the images of one file may become.
const MAX_DECODED: u64 = 8 << 30;

/// Which columns hold what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns<'a> {
    /// The images.
    pub(super) image: &'a str,
    /// Their labels; none: they are not read.
    pub(super) label: Option<&'a str>,
}

/// The files of one part of a dataset, `train-*.parquet` and the like, in the order of their names:
/// in the folder, or in its `data`.
///
/// # Errors
/// If there is none.
pub(super) fn find(dir: &Path, split: Split) -> Result<Vec<PathBuf>, DataError> {
    for folder in [dir.to_owned(), dir.join("data")] {
        for name in split.names() {
            let files = shards(&folder, name);
            if !files.is_empty() {
                return Ok(files);
            }
        }
    }
    let names: Vec<_> = split.names().iter().map(|name| format!("`{name}-*.parquet`")).collect();
    let expected = format!("{}, nor has its `data`", names.join(" or "));
    Err(DataError::Empty { folder: dir.to_owned(), expected })
}

/// Files `{name}-*.parquet`, sorted; none where the folder cannot be read.
fn shards(folder: &Path, name: &str) -> Vec<PathBuf> {
    let prefix = format!("{name}-");
    let is_shard = |file: &PathBuf| {
        let known = file.file_name().and_then(|name| name.to_str());
        known.is_some_and(|known| known.starts_with(&prefix) && known.ends_with(".parquet"))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_shard).collect();
    files.sort_unstable();
    files
}

/// Reads files, one after the other.
///
/// # Errors
/// If a file or an image in it cannot be read, a column is missing or of another type, there is no
/// row, or an image or a label does not fit.
pub(super) fn read(
    files: &[PathBuf],
    columns: Columns<'_>,
    fit: &Fit,
) -> Result<Dataset, DataError> {
    let mut rows = Rows::new(*fit);
    let mut labels = columns.label.map(|_| Vec::new());
    for file in files {
        // The reader asserts here and there what a damaged file does not keep to. Nothing of what it
        // had read by then is used.
        let append = || append(file, columns, fit, &mut rows, labels.as_mut());
        catch_unwind(AssertUnwindSafe(append)).unwrap_or_else(|_| {
            let expected = "what its own metadata says";
            Err(Fault::new("Parquet data", "damaged", expected).in_file(file))
        })?;
    }
    let last = files.last().map_or(Path::new(""), PathBuf::as_path);
    let (shape, planes) = rows.finish();
    Ok(Dataset::new(shape.unwrap_or_default(), planes, labels, last)?)
}

/// Appends the rows of one file.
fn append(
    file: &Path,
    columns: Columns<'_>,
    fit: &Fit,
    rows: &mut Rows,
    labels: Option<&mut Vec<u32>>,
) -> Result<(), FileError> {
    let opened = File::open(file).map_err(FileError::reading(file))?;
    append_groups(opened, columns, fit, rows, labels).map_err(|fault| fault.in_file(file))
}

/// Appends the rows of one row group after the other.
fn append_groups(
    file: File,
    columns: Columns<'_>,
    fit: &Fit,
    rows: &mut Rows,
    mut labels: Option<&mut Vec<u32>>,
) -> Result<(), Fault> {
    let reader = SerializedFileReader::new(file)
        .map_err(|error| Fault::new("metadata", error, "those of a Parquet file"))?;
    let most = MAX_DECODED / fit.width.max(1) as u64;
    let schema = reader.metadata().file_metadata().schema_descr();
    let image = column::find_image(schema, columns.image)?;
    let label = columns.label.map(|name| column::find_label(schema, name)).transpose()?;

    let mut row = 0;
    for number in 0..reader.num_row_groups() {
        let group = reader.get_row_group(number);
        let group = group.map_err(|error| Fault::new("row group", error, "a whole one"))?;
        let mut image = Column::open(&*group, schema, image)?;
        let mut label = label.map(|at| Column::open(&*group, schema, at)).transpose()?;
        loop {
            let images = image.next(CHUNK, row)?;
            if let (Some(label), Some(labels)) = (&mut label, &mut labels) {
                append_labels(&label.next(CHUNK, row)?, images.len(), row, fit, labels)?;
            }
            if images.is_empty() {
                break;
            }
            // A dictionary makes any number of rows of one image.
            if (row + images.len()) as u64 > most {
                let found = format!("more than {most}");
                return Err(Fault::new("rows", found, format!("at most {most}, 8 GiB of images")));
            }
            for image in images {
                let pushed = image.bytes().and_then(|bytes| rows.push(bytes));
                pushed.map_err(|fault| fault.of_row(row))?;
                row += 1;
            }
        }
    }
    Ok(())
}

/// Appends the labels of `images` rows, of which the first is number `row` of the file.
fn append_labels(
    values: &[Value],
    images: usize,
    row: usize,
    fit: &Fit,
    labels: &mut Vec<u32>,
) -> Result<(), Fault> {
    if values.len() != images {
        let expected = format!("{}, as many as images", row + images);
        return Err(Fault::new("labels", row + values.len(), expected));
    }
    for (value, at) in values.iter().zip(row..) {
        let label = value.integer().and_then(|label| fit.check_label(label));
        labels.push(label.map_err(|fault| fault.of_row(at))?);
    }
    Ok(())
}

/// The texts in columns of strings of a file's bytes, row by row, and behind them those of a column of
/// labels, which may be integers. Whether texts are UTF-8 is not checked.
///
/// # Errors
/// If it is no Parquet file, a column is missing or of another type, or the file is damaged, in words.
pub(crate) fn read_texts(
    bytes: &[u8],
    columns: &[&str],
    label: Option<&str>,
) -> Result<Vec<Vec<Cell>>, String> {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    // The reader asserts here and there what a damaged file does not keep to.
    let read = || texts(bytes, columns, label).map_err(|fault| fault.to_string());
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err("Parquet data is damaged".to_owned()))
}

fn texts(
    bytes: bytes::Bytes,
    columns: &[&str],
    label: Option<&str>,
) -> Result<Vec<Vec<Cell>>, Fault> {
    let reader = SerializedFileReader::new(bytes)
        .map_err(|error| Fault::new("metadata", error, "those of a Parquet file"))?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let wanted = columns.iter().map(|name| (*name, false));
    let numbers: Vec<usize> = wanted
        .chain(label.map(|name| (name, true)))
        .map(|(name, numbers)| column::find_text(schema, name, numbers))
        .collect::<Result<_, _>>()?;
    let mut rows: Vec<Vec<Cell>> = vec![];
    let mut held = 0;
    for number in 0..reader.num_row_groups() {
        let group = reader.get_row_group(number);
        let group = group.map_err(|error| Fault::new("row group", error, "a whole one"))?;
        let open = |&at: &usize| Column::open(&*group, schema, at);
        let mut open_columns = numbers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        loop {
            let parts = open_columns
                .iter_mut()
                .map(|column| column.next(CHUNK, rows.len()))
                .collect::<Result<Vec<_>, _>>()?;
            let count = parts.first().map_or(0, Vec::len);
            if let Some(other) = parts.iter().find(|part| part.len() != count) {
                let expected = format!("{count}, as many as in the first column");
                return Err(Fault::new("values", other.len(), expected));
            }
            if count == 0 {
                break;
            }
            for row in 0..count {
                let texts: Vec<_> = parts.iter().map(|part| part[row].cell()).collect();
                // A dictionary makes any number of rows of one text.
                held += texts.iter().map(|text| text.len() as u64).sum::<u64>();
                // What a row takes beside its text.
                held += 64 * (1 + texts.len() as u64);
                rows.push(texts);
            }
            if held > MAX_DECODED {
                let found = format!("more than {MAX_DECODED} bytes of text and rows");
                return Err(Fault::new("rows", found, "at most 8 GiB"));
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
pub(crate) mod tests;
