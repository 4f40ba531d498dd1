//! Residual networks that others trained, with others' outputs: `examples/models/*/SOURCE.md`.

use std::path::Path;

use stillhouse_nn::Classifier;

/// The first four images of CIFAR-10's test set (`examples/data/cifar10/SOURCE.md`): a label and 3,072
/// bytes each.
const IMAGES: &[u8; 4 * 3_073] = include_bytes!("../fixtures/cifar10_first4.bin");

/// What resnet20's authors' code answers in PyTorch.
#[rustfmt::skip]
const RESNET20: [[f32; 10]; 4] = [
    [-5.30968, -0.49577, 0.87726, 23.73051, -4.10504, 4.46373, -0.23435, -5.41793, -3.71179, -9.88218],
    [5.95395, 11.69083, -8.77125, -6.91106, -11.66847, -8.16296, -6.04122, -8.32134, 32.13242, -0.00407],
    [1.20269, 10.48021, -2.02971, -5.42045, -7.33144, -6.34813, -5.24622, -3.17900, 16.56279, 1.24183],
    [10.76626, 0.84430, 1.99159, 0.78452, -6.27399, -6.12976, -5.18360, -5.58496, 5.49246, 3.23557],
];

/// What resnet56's authors' code answers in PyTorch.
#[rustfmt::skip]
const RESNET56: [[f32; 10]; 4] = [
    [-5.52563, -1.54687, -0.71578, 19.43942, -5.09771, 3.02193, -1.51091, -0.93505, -1.79583, -5.40494],
    [0.74860, 4.91747, -6.48624, -4.52583, -10.10450, -5.97757, -3.62352, -3.73711, 27.54609, 1.21252],
    [0.22129, 11.78218, -4.67996, -7.37557, -3.37309, -4.03976, -6.38772, -4.14278, 14.45920, 3.53219],
    [14.73098, 0.31779, 0.69864, -1.41860, -7.82439, -7.85490, -3.87804, -2.92384, 5.94362, 2.18886],
];

fn check(model: &str, expected: &[[f32; 10]; 4]) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models");
    let teacher = Classifier::load(&models.join(model)).unwrap();
    assert_eq!(teacher.config().image_shape(), Some([3, 32, 32]));
    let pixels = IMAGES.chunks_exact(3_073).flat_map(|record| &record[1..]);
    let input: Vec<f32> =
        pixels.map(|&byte| (f64::from(byte) * teacher.rescale_factor()) as f32).collect();
    let inference = teacher.infer(&input, 4).unwrap();
    for (found, expected) in inference.logits.iter().zip(expected.as_flattened()) {
        assert!((found - expected).abs() < 1e-4, "{model}: {found}, not {expected}");
    }
    assert_eq!(teacher.head().logits(&inference.hidden).unwrap(), inference.logits);
    // Each alone, in another place of a batch, or beside others: the same bits.
    for row in 0..4 {
        let alone = teacher.infer(&input[row * 3_072..][..3_072], 1).unwrap();
        assert_eq!(alone.logits, inference.logits[row * 10..][..10]);
    }
}

#[test]
fn resnet_20_answers_as_published() {
    check("resnet20-cifar10", &RESNET20);
}

#[test]
fn resnet_56_answers_as_published() {
    check("resnet56-cifar10", &RESNET56);
}
