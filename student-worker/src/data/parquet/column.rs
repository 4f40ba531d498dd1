//! One column of a row group, a few rows at a time.

use parquet::{
    basic::{Compression, Type},
    column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader},
    data_type::{ByteArray, DataType},
    file::reader::RowGroupReader,
    schema::types::{ColumnDescriptor, SchemaDescriptor},
};

use super::{super::file::Fault, pages::Pages};

/// A column that is being read.
pub(super) struct Column {
    name: String,
    reader: ColumnReader,
    /// The level at which a value is there; below it, it or what holds it is null.
    defined_at: i16,
}

/// What a column has in one row.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing.
    Null,
    /// A number.
    Integer(i64),
    /// Bytes.
    Bytes(ByteArray),
}

/// What a table has in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Nothing.
    Null,
    /// An integer.
    Number(i64),
    /// Text, whatever its bytes are.
    Text(Vec<u8>),
}

impl Cell {
    /// Bytes that it holds beside itself.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Null | Self::Number(_) => 0,
        }
    }
}

impl Value {
    /// As a label.
    pub(super) fn integer(&self) -> Result<i64, Fault> {
        match self {
            Self::Integer(value) => Ok(*value),
            _ => Err(Fault::new("label", "null", "an integer")),
        }
    }

    /// As a cell of a table.
    pub(super) fn cell(&self) -> Cell {
        match self {
            Self::Bytes(bytes) => Cell::Text(bytes.data().to_vec()),
            Self::Integer(number) => Cell::Number(*number),
            Self::Null => Cell::Null,
        }
    }

    /// As an image.
    pub(super) fn bytes(&self) -> Result<&[u8], Fault> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.data()),
            _ => Err(Fault::new("image", "null", "the bytes of a PNG or JPEG file")),
        }
    }
}

/// The number of the column that holds images: `name.bytes`, or `name` itself.
pub(super) fn find_image(schema: &SchemaDescriptor, name: &str) -> Result<usize, Fault> {
    let is_bytes = |column: &ColumnDescriptor| column.physical_type() == Type::BYTE_ARRAY;
    let found = find(schema, &[name, "bytes"], is_bytes);
    found.or_else(|| find(schema, &[name], is_bytes)).ok_or_else(|| {
        let expected = format!("`{name}.bytes` or `{name}` of bytes, as data.image_column says");
        Fault::new("columns", names(schema), expected)
    })
}

/// The number of a column that holds texts or, where `numbers`, integers.
pub(super) fn find_text(
    schema: &SchemaDescriptor,
    name: &str,
    numbers: bool,
) -> Result<usize, Fault> {
    let suits = |column: &ColumnDescriptor| match column.physical_type() {
        Type::BYTE_ARRAY => true,
        Type::INT32 | Type::INT64 => numbers,
        _ => false,
    };
    let what = if numbers { "strings or integers" } else { "strings" };
    find(schema, &[name], suits)
        .ok_or_else(|| Fault::new("columns", names(schema), format!("`{name}` of {what}")))
}

/// The number of the column that holds labels.
pub(super) fn find_label(schema: &SchemaDescriptor, name: &str) -> Result<usize, Fault> {
    let is_integer =
        |column: &ColumnDescriptor| matches!(column.physical_type(), Type::INT32 | Type::INT64);
    find(schema, &[name], is_integer).ok_or_else(|| {
        let expected = format!("`{name}` of integers, as data.label_column says");
        Fault::new("columns", names(schema), expected)
    })
}

fn find(
    schema: &SchemaDescriptor,
    path: &[&str],
    suits: impl Fn(&ColumnDescriptor) -> bool,
) -> Option<usize> {
    // A column of lists has several values a row.
    let wanted = |column: &ColumnDescriptor| {
        column.path().parts() == path && column.max_rep_level() == 0 && suits(column)
    };
    schema.columns().iter().position(|column| wanted(column))
}

/// Every column with its type.
fn names(schema: &SchemaDescriptor) -> String {
    let name = |column: &ColumnDescriptor| {
        format!("{} ({})", column.path().string(), column.physical_type())
    };
    schema.columns().iter().map(|column| name(column)).collect::<Vec<_>>().join(", ")
}

impl Column {
    pub(super) fn open(
        group: &dyn RowGroupReader,
        schema: &SchemaDescriptor,
        number: usize,
    ) -> Result<Self, Fault> {
        let descriptor = schema.column(number);
        let name = descriptor.path().string();
        let chunk = group.metadata().column(number);
        let starts = [Some(chunk.data_page_offset()), chunk.dictionary_page_offset()];
        if starts.into_iter().flatten().chain([chunk.compressed_size()]).any(|at| at < 0) {
            let found = "at an offset or of a length below 0";
            return Err(Fault::new(format!("column `{name}`"), found, "within the file"));
        }
        let compression = chunk.compression();
        if !matches!(compression, Compression::UNCOMPRESSED | Compression::SNAPPY) {
            let what = format!("compression of column `{name}`");
            // Without its level, which a file does not say.
            let codec = compression.to_string();
            let codec = codec.split('(').next().unwrap_or_default();
            return Err(Fault::new(what, codec, "SNAPPY or UNCOMPRESSED"));
        }
        let pages = group
            .get_column_page_reader(number)
            .map_err(|error| Fault::new(format!("column `{name}`"), error, "whole pages"))?;
        let defined_at = descriptor.max_def_level();
        let reader = get_column_reader(descriptor, Box::new(Pages::new(pages)));
        Ok(Self { name, reader, defined_at })
    }

    /// The values of up to `most` rows more, of which the first is number `row` of the file; none
    /// after the last.
    pub(super) fn next(&mut self, most: usize, row: usize) -> Result<Vec<Value>, Fault> {
        let defined_at = self.defined_at;
        let values = match &mut self.reader {
            ColumnReader::Int32ColumnReader(reader) => {
                take(reader, defined_at, most, |value| Value::Integer(i64::from(value)))
            }
            ColumnReader::Int64ColumnReader(reader) => {
                take(reader, defined_at, most, Value::Integer)
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                take(reader, defined_at, most, Value::Bytes)
            }
            _ => Ok(Vec::new()),
        };
        values.map_err(|error| {
            Fault::new(format!("column `{}` from row {row} on", self.name), error, "whole pages")
        })
    }
}

fn take<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    defined_at: i16,
    most: usize,
    wrap: impl Fn(T::T) -> Value,
) -> Result<Vec<Value>, String> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (rows, ..) = reader
        .read_records(most, Some(&mut levels), None, &mut values)
        .map_err(|error| error.to_string())?;
    let mut values = values.into_iter().map(wrap);
    if defined_at == 0 {
        return Ok(values.collect());
    }
    let defined = levels.iter().filter(|level| **level == defined_at).count();
    if levels.len() != rows || defined != values.len() {
        return Err(format!("{} values for {rows} rows, {defined} of them set", values.len()));
    }
    let mut value = |level: &i16| match *level == defined_at {
        true => values.next().unwrap_or(Value::Null),
        false => Value::Null,
    };
    Ok(levels.iter().map(&mut value).collect())
}
