//! Files that this crate's own writer and pyarrow made, whole and broken.

use std::sync::Arc;

use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use super::*;
use crate::data::image::tests::grey_png;

const FIT: Fit = Fit { width: 6, image_shape: None, classes: 10 };
const HF: &str = "message m { optional group image { optional binary bytes; \
                  optional binary path (string); } optional int64 label; }";

/// A row: an image (none: null) and a label.
type Row = (Option<Vec<u8>>, Option<i64>);

fn bytes(values: impl Iterator<Item = Option<Vec<u8>>>) -> (Vec<ByteArray>, Vec<bool>) {
    let values: Vec<Option<Vec<u8>>> = values.collect();
    let there = values.iter().map(Option::is_some).collect();
    (values.into_iter().flatten().map(ByteArray::from).collect(), there)
}

/// Writes row groups as Hugging Face's datasets lay them out.
fn write(file: &Path, groups: &[Vec<Row>], compression: Compression) {
    let schema = Arc::new(parse_message_type(HF).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer =
        SerializedFileWriter::new(File::create(file).unwrap(), schema, properties).unwrap();
    let level = |top: i16| move |there: &bool| if *there { top } else { 0 };
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let (images, there) = bytes(rows.iter().map(|row| row.0.clone()));
        let levels: Vec<i16> = there.iter().map(level(2)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&images, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let none = vec![0; rows.len()];
        column.typed::<ByteArrayType>().write_batch(&[], Some(&none), None).unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = rows.iter().filter_map(|row| row.1).collect();
        let levels: Vec<i16> = rows.iter().map(|row| level(1)(&row.1.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// A file with columns of strings and, where given, one of integers.
pub(crate) fn of_texts(
    columns: &[(&str, &[Option<&str>])],
    labels: Option<(&str, &[i64])>,
) -> Vec<u8> {
    let mut fields: String =
        columns.iter().map(|(n, _)| format!("optional binary {n} (string);")).collect();
    fields.extend(labels.iter().map(|(name, _)| format!("required int64 {name};")));
    let schema = Arc::new(parse_message_type(&format!("message m {{ {fields} }}")).unwrap());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (_, values) in columns {
        let own = values.iter().map(|value| value.map(|text| text.as_bytes().to_vec()));
        let (texts, there) = bytes(own);
        let levels: Vec<i16> = there.iter().map(|there| i16::from(*there)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&levels), None).unwrap();
        column.close().unwrap();
    }
    if let Some((_, labels)) = labels {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(labels, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    file
}

fn rows(from: usize, to: usize) -> Vec<Row> {
    let image = |row: usize| Some(grey_png(3, 2, row as u8));
    (from..to).map(|row| (image(row), Some(row as i64 % 10))).collect()
}

fn columns() -> Columns<'static> {
    Columns { image: "image", label: Some("label") }
}

fn read_file(file: &Path, columns: Columns<'_>) -> Result<Dataset, String> {
    read(&[file.to_owned()], columns, &FIT).map_err(|error| error.to_string())
}

#[test]
fn rows_of_several_groups_and_files_come_in_order() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    let error = find(dir.path(), Split::Train).unwrap_err().to_string();
    assert!(error.ends_with("has no `train-*.parquet`, nor has its `data`"), "{error}");
    let at = |name: &str| dir.path().join("data").join(name);
    let last = at("train-00001-of-00002.parquet");
    write(&last, &[rows(150, 160)], Compression::UNCOMPRESSED);
    let first = at("train-00000-of-00002.parquet");
    write(&first, &[rows(0, 70), rows(70, 150)], Compression::SNAPPY);
    write(&at("validation-0.parquet"), &[rows(7, 8)], Compression::SNAPPY);
    let files = find(dir.path(), Split::Train).unwrap();
    assert_eq!(files, [first, last]);
    let data = read(&files, columns(), &FIT).unwrap();
    assert_eq!((data.len(), data.shape()), (160, [1, 2, 3]));
    for row in 0..160 {
        assert_eq!(data.row(row)[0], row as u8);
        assert_eq!(data.labels().unwrap()[row as usize], row % 10);
    }
    let bare = Columns { label: None, ..columns() };
    assert_eq!(read(&files, bare, &FIT).unwrap().labels(), None);
    assert_eq!(find(dir.path(), Split::Test).unwrap(), [at("validation-0.parquet")]);
}

/// `tests/fixtures/make_parquet.py` says what is in the file, and how it was made.
#[test]
fn a_file_of_pyarrow_gives_the_pixels_of_pillow() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let planes = fs::read(fixtures.join("images.planes")).unwrap();
    let file = [fixtures.join("images.parquet")];
    for image in ["image", "png"] {
        for channels in [3, 1] {
            let shape = [channels, 6, 8];
            let fit = Fit { width: channels * 48, image_shape: Some(shape), classes: 4 };
            let data = read(&file, Columns { image, ..columns() }, &fit).unwrap();
            assert_eq!(data.labels(), Some([3, 0, 2, 1, 3].as_slice()));
            for (row, planes) in planes.chunks_exact(4 * 48).enumerate() {
                let expected = if channels == 3 { &planes[..144] } else { &planes[144..] };
                // JPEG decoders may differ in how they round.
                let most = if row == 4 { 2 } else { 0 };
                let pairs = data.row(row as u32).iter().zip(expected);
                let furthest = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(furthest <= most, "row {row}, {channels} channels: off by {furthest}");
            }
        }
    }
}

#[test]
fn a_compression_that_is_not_read_is_named() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let error = read_file(&fixtures.join("labels-zstd.parquet"), columns()).unwrap_err();
    let expected = "labels-zstd.parquet: compression of column `image` is ZSTD, expected SNAPPY or";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_column_that_is_not_there_is_named_with_those_that_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.parquet");
    write(&file, &[rows(0, 3)], Compression::SNAPPY);
    let error = read_file(&file, Columns { image: "img", ..columns() }).unwrap_err();
    let expected = "a.parquet: columns is image.bytes (BYTE_ARRAY), image.path (BYTE_ARRAY), \
                    label (INT64), expected `img.bytes` or `img` of bytes, as data.image_column says";
    assert!(error.ends_with(expected), "{error}");
    let error = read_file(&file, Columns { label: Some("fine"), ..columns() }).unwrap_err();
    assert!(error.ends_with("expected `fine` of integers, as data.label_column says"), "{error}");
}

#[test]
fn what_is_wrong_with_a_row_names_file_and_row() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.parquet");
    let with = |row: usize, change: Row| {
        let mut all = rows(0, 80);
        all[row] = change;
        write(&file, &[all], Compression::SNAPPY);
        read_file(&file, columns()).unwrap_err()
    };
    let png = || Some(grey_png(3, 2, 0));
    for (row, change, expected) in [
        (70, (None, Some(1)), "a.parquet: image of row 70 is null"),
        (70, (Some(vec![1; 9]), Some(1)), "image of row 70 is of no known format"),
        (
            71,
            (Some(grey_png(4, 2, 0)), Some(1)),
            "height x width of row 71 is 2 x 4, expected 2 x 3",
        ),
        (72, (png(), Some(10)), "label of row 72 is 10, expected 0 to 9"),
        (73, (png(), Some(-1)), "label of row 73 is -1"),
        (74, (png(), None), "label of row 74 is null, expected an integer"),
    ] {
        let error = with(row, change);
        assert!(error.contains(expected), "{error}");
    }
    write(&file, &[], Compression::SNAPPY);
    let error = read_file(&file, columns()).unwrap_err();
    assert!(error.contains("a.parquet: images is 0"), "{error}");
}

/// Labels of 32 bits, columns that cannot be null, and bytes without a struct.
#[test]
fn other_layouts_that_hold_the_same_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.parquet");
    let schema = "message m { required binary img; required int32 fine_label; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let out = File::create(&file).unwrap();
    let mut writer = SerializedFileWriter::new(out, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let images = [ByteArray::from(grey_png(3, 2, 4)), ByteArray::from(grey_png(3, 2, 5))];
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&images, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[7, 8], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let data = read_file(&file, Columns { image: "img", label: Some("fine_label") }).unwrap();
    assert_eq!((data.row(1)[0], data.labels()), (5, Some([7, 8].as_slice())));
}

/// A dictionary makes any number of rows of the bytes of one.
#[test]
fn more_rows_than_memory_should_hold_are_refused_before_they_are_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.parquet");
    write(&file, &[vec![(Some(grey_png(3, 2, 0)), Some(1)); 3]], Compression::SNAPPY);
    let wide = Fit { width: 4 << 30, ..FIT };
    let error = read(&[file], columns(), &wide).unwrap_err().to_string();
    assert!(error.ends_with("rows is more than 2, expected at most 2, 8 GiB of images"), "{error}");
}

/// Whatever byte is another: reading ends, with an error or with as many labels as images.
#[test]
fn a_broken_file_is_an_error_and_ends_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.parquet");
    write(&file, &[rows(0, 4), rows(4, 6)], Compression::SNAPPY);
    let whole = fs::read(&file).unwrap();
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        assert!(read_file(&file, columns()).is_err(), "cut to {length} bytes");
    }
    for at in 0..whole.len() {
        for flip in [1, 0x40, 0xff] {
            let mut broken = whole.clone();
            broken[at] ^= flip;
            fs::write(&file, &broken).unwrap();
            if let Ok(data) = read_file(&file, columns()) {
                assert_eq!(Some(data.len()), data.labels().map(<[u32]>::len));
            }
        }
    }
}
