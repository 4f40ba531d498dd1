//! One data set in every format that its images fit.

use std::{fs, path::Path, sync::Arc};

use parquet::{
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::writer::SerializedFileWriter,
    schema::parser::parse_message_type,
};
use student_worker::{recipe, run_folder::Existing};

use crate::support::{Bench, CLASSES, SIDE, run};

/// Images and labels of one part of the bench's data.
fn part(folder: &Path, prefix: &str) -> (Vec<Vec<u8>>, Vec<u8>) {
    let images = fs::read(folder.join(format!("{prefix}-images-idx3-ubyte"))).unwrap();
    let labels = fs::read(folder.join(format!("{prefix}-labels-idx1-ubyte"))).unwrap();
    let images = images[16..].chunks((SIDE * SIDE) as usize).map(<[u8]>::to_vec);
    (images.collect(), labels[8..].to_vec())
}

fn png(pixels: &[u8]) -> Vec<u8> {
    let image = image::GrayImage::from_raw(SIDE, SIDE, pixels.to_vec()).unwrap();
    let mut file = std::io::Cursor::new(Vec::new());
    image.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// Writes the bench's data once more: as `folder/train/class-0/..` and `folder/test/..`, and as
/// `train-0.parquet` and `test-0.parquet`.
pub(crate) fn write_others(bench: &Bench) {
    for (prefix, name) in [("train", "train"), ("t10k", "test")] {
        let (images, labels) = part(bench.path(), prefix);
        let files: Vec<Vec<u8>> = images.iter().map(|pixels| png(pixels)).collect();
        for class in 0..CLASSES {
            let folder = bench.path().join(format!("folder/{name}/class-{class}"));
            fs::create_dir_all(&folder).unwrap();
            for (row, file) in files.iter().enumerate() {
                if u32::from(labels[row]) == class {
                    fs::write(folder.join(format!("{row:04}.png")), file).unwrap();
                }
            }
        }
        let labels: Vec<i64> = labels.iter().copied().map(i64::from).collect();
        let file = bench.path().join(format!("{name}-0.parquet"));
        let files: Vec<ByteArray> = files.into_iter().map(ByteArray::from).collect();
        write_parquet(&file, &files, &labels);
    }
}

fn write_parquet(file: &Path, images: &[ByteArray], labels: &[i64]) {
    let schema = "message m { required group image { required binary bytes; } \
                  required int64 label; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(file).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(images, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(labels, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_rows_make_the_same_student_whatever_they_were_read_from() {
    let bench = Bench::new();
    write_others(&bench);
    for (name, set) in [
        ("mnist", &[][..]),
        ("parquet", &["data.format=parquet"]),
        ("folder", &["data.format=folder", "data.dir=folder"]),
    ] {
        let set: Vec<String> = set.iter().map(|change| (*change).to_owned()).collect();
        let recipe = recipe::load(&bench.write_recipe(name, ""), &set).unwrap();
        let outcome = run(recipe, Existing::Refuse).await.unwrap();
        assert_eq!((outcome.steps, outcome.test.unwrap().rows), (32, 60), "{name}");
    }
    assert_eq!(bench.weights("parquet"), bench.weights("mnist"));
    // Class by class, so in another order.
    assert_ne!(bench.weights("folder"), bench.weights("mnist"));
}
