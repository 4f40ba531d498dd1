//! Residual networks that others trained, with others' outputs: `examples/models/*/SOURCE.md`.

use std::path::Path;

use stillhouse_nn::Classifier;

/// The first four images of CIFAR-10's test set (`examples/data/cifar10/SOURCE.md`): a label and 3,072
/// bytes each.
const IMAGES: &[u8; 4 * 3_073] = include_bytes!("../fixtures/cifar10_first4.bin");

/// What resnet20's authors' code answers in PyTorch.
#[rustfmt::skip]
const RESNET20: [[f32; 10]; 4] = [
    [-5.3097, -0.4958, 0.8773, 23.7305, -4.1050, 4.4637, -0.2344, -5.4179, -3.7118, -9.8822],
    [5.9539, 11.6908, -8.7713, -6.9111, -11.6685, -8.1630, -6.0412, -8.3213, 32.1324, -0.0041],
    [1.2027, 10.4802, -2.0297, -5.4204, -7.3314, -6.3481, -5.2462, -3.1790, 16.5628, 1.2418],
    [10.7663, 0.8443, 1.9916, 0.7845, -6.2740, -6.1298, -5.1836, -5.5850, 5.4925, 3.2356],
];

/// What resnet56's authors' code answers in PyTorch.
#[rustfmt::skip]
const RESNET56: [[f32; 10]; 4] = [
    [-5.5256, -1.5469, -0.7158, 19.4394, -5.0977, 3.0219, -1.5109, -0.9351, -1.7958, -5.4049],
    [0.7486, 4.9175, -6.4862, -4.5258, -10.1045, -5.9776, -3.6235, -3.7371, 27.5461, 1.2125],
    [0.2213, 11.7822, -4.6800, -7.3756, -3.3731, -4.0398, -6.3877, -4.1428, 14.4592, 3.5322],
    [14.7310, 0.3178, 0.6986, -1.4186, -7.8244, -7.8549, -3.8780, -2.9238, 5.9436, 2.1889],
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
