//! A residual network that others trained, served as a teacher: it answers as in its authors' code
//! (`examples/models/resnet56-cifar10/SOURCE.md`).

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{fs::File, io::Read as _, path::Path};

use flate2::read::GzDecoder;
use stillhouse_proto::{
    SoftLabels, decode,
    v1::{
        DType, DenseEncoding, DenseKind, LabelRequest, Tensor, encoding::Kind,
        label_request::Inputs,
    },
};
use stillhouse_tests::{client, process::Teacher};

const PIXELS: usize = 3_072;
/// Of the 1,000 images, as stated for these weights: 92.6 %.
const RIGHT: usize = 926;
/// Logits of the first four.
#[rustfmt::skip]
const LOGITS: [[f32; 10]; 4] = [
    [-5.5256, -1.5469, -0.7158, 19.4394, -5.0977, 3.0219, -1.5109, -0.9351, -1.7958, -5.4049],
    [0.7486, 4.9175, -6.4862, -4.5258, -10.1045, -5.9776, -3.6235, -3.7371, 27.5461, 1.2125],
    [0.2213, 11.7822, -4.6800, -7.3756, -3.3731, -4.0398, -6.3877, -4.1428, 14.4592, 3.5322],
    [14.7310, 0.3178, 0.6986, -1.4186, -7.8244, -7.8549, -3.8780, -2.9238, 5.9436, 2.1889],
];

fn examples() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// Labels and pixels of CIFAR-10's first 1,000 test images.
fn images() -> (Vec<u8>, Vec<u8>) {
    let file = File::open(examples().join("data/cifar10/test_first1000.bin.gz")).unwrap();
    let mut records = Vec::new();
    GzDecoder::new(file).read_to_end(&mut records).unwrap();
    assert_eq!(records.len(), 1_000 * (PIXELS + 1));
    let (mut labels, mut pixels) = (vec![], vec![]);
    for record in records.chunks_exact(PIXELS + 1) {
        labels.push(record[0]);
        pixels.extend_from_slice(&record[1..]);
    }
    (labels, pixels)
}

fn request(id: u64, pixels: &[u8], kind: Kind) -> LabelRequest {
    let shape = vec![(pixels.len() / PIXELS) as u64, PIXELS as u64];
    let features = Tensor { dtype: DType::U8.into(), shape, data: pixels.to_vec().into() };
    LabelRequest {
        inputs: Some(Inputs::Features(features)),
        encoding: client::encoding(kind),
        ..client::request(id, &[0.0; PIXELS], PIXELS)
    }
}

#[test]
fn resnet_56_over_grpc_answers_as_in_its_authors_code() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let teacher = Teacher::start(&examples().join("models/resnet56-cifar10"), &[]);
    let mut client = runtime.block_on(client::connect(teacher.address()));
    let (classes, pixels) = images();
    let logits = DenseEncoding { kind: DenseKind::Logits.into(), dtype: DType::F32.into() };
    let mut found = vec![];
    for (id, pixels) in (0..).zip(pixels.chunks(125 * PIXELS)) {
        let request = request(id, pixels, Kind::Dense(logits));
        let response = runtime.block_on(client.label(request)).unwrap().into_inner();
        match decode(&response.labels[0]).unwrap().labels {
            SoftLabels::Dense { kind: DenseKind::Logits, values } => found.extend(values),
            other => panic!("{other:?}"),
        }
    }
    for (found, expected) in found.iter().zip(LOGITS.as_flattened()) {
        assert!((found - expected).abs() < 1e-3, "{found}, not {expected}");
    }
    let right = found.chunks_exact(10).zip(&classes).filter(|(logits, class)| {
        let best = (0..10).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        best == Some(usize::from(**class))
    });
    assert_eq!(right.count(), RIGHT);
}
