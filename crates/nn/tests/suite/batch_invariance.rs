//! A row's logits and hidden state are the same bits alone and in any batch, at any place.

use proptest::prelude::*;
use stillhouse_nn::io::read_tensors;
use stillhouse_nn::{Classifier, Head, MlpConfig, ModelConfig, Philox, Trainer, TrainerConfig};

use crate::support::normals32;

fn classifier(config: MlpConfig) -> Classifier {
    let dir = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(TrainerConfig::new(ModelConfig::Mlp(config), 1)).unwrap();
    trainer.save_model(dir.path()).unwrap();
    Classifier::load(dir.path()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn any_composition(
        hidden in prop_oneof![Just(vec![]), Just(vec![37]), Just(vec![130, 33])],
        picks in prop::collection::vec(0usize..12, 1..70),
        seed: u64,
    ) {
        let teacher = classifier(MlpConfig::new(61, hidden, 11));
        let rows = normals32(&mut Philox::new(seed, 50), 12 * 61);
        let row = |i: usize| &rows[i * 61..][..61];
        let batch: Vec<f32> = picks.iter().flat_map(|&i| row(i).iter().copied()).collect();
        let together = teacher.infer(&batch, picks.len()).unwrap();
        let d = teacher.hidden_size();
        for (place, &i) in picks.iter().enumerate() {
            let alone = teacher.infer(row(i), 1).unwrap();
            prop_assert_eq!(bits(&alone.logits), bits(&together.logits[place * 11..][..11]));
            prop_assert_eq!(bits(&alone.hidden), bits(&together.hidden[place * d..][..d]));
        }
        // A client that rebuilds logits from hidden states gets the very same ones.
        let head: Head = teacher.head();
        prop_assert_eq!(bits(&head.logits(&together.hidden).unwrap()), bits(&together.logits));
        let packed = head.pack().unwrap();
        for _ in 0..2 {
            let rebuilt = packed.logits(&together.hidden).unwrap();
            prop_assert_eq!(bits(&rebuilt), bits(&together.logits));
        }
    }
}

#[test]
fn logits_are_those_of_the_definition() {
    let teacher =
        classifier(MlpConfig { image_mean: 0.25, image_std: 0.5, ..MlpConfig::new(20, vec![], 4) });
    let input = normals32(&mut Philox::new(51, 0), 3 * 20);
    let Head { weight, bias, .. } = teacher.head();
    let logits = teacher.infer(&input, 3).unwrap().logits;
    for (i, &found) in logits.iter().enumerate() {
        let terms = input[i / 4 * 20..][..20].iter().zip(&weight[i % 4 * 20..]);
        let sum: f64 = terms.map(|(&x, &w)| (f64::from(x) - 0.25) / 0.5 * f64::from(w)).sum();
        let expected = sum + f64::from(bias.as_ref().unwrap()[i % 4]);
        assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
    }
}

#[test]
fn a_bad_row_stays_alone() {
    let teacher = classifier(MlpConfig::new(3, vec![4], 2));
    let inference = teacher.infer(&[1.0, 2.0, 3.0, 1.0, f32::NAN, 3.0, 1.0, 2.0, 3.0], 3).unwrap();
    assert_eq!(bits(&inference.logits[..2]), bits(&inference.logits[4..]));
    assert!(inference.logits[..2].iter().all(|z| z.is_finite()));
    assert!(inference.logits[2..4].iter().all(|z| !z.is_finite()));
}

/// Infinity times a weight of the right sign is minus infinity, which max(0, x) would make a 0: the
/// row would get an answer that its input has no part in. One hidden unit shows it for one sign.
#[test]
fn non_finite_rows_have_no_answer() {
    let std = |image_std, hidden| MlpConfig { image_std, ..MlpConfig::new(2, hidden, 3) };
    for (image_std, hidden) in [(1.0, vec![1]), (1.0, vec![9, 4]), (1e-3, vec![1]), (1e-3, vec![])]
    {
        let teacher = classifier(std(image_std, hidden));
        // Dividing by the standard deviation overflows.
        let huge = if image_std < 1.0 { 1e37 } else { f32::INFINITY };
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, huge, -huge] {
            let inference = teacher.infer(&[0.5, -1.0, 1.0, bad, 0.25, 2.0], 3).unwrap();
            let d = teacher.hidden_size();
            assert!(inference.logits[3..6].iter().all(|z| z.is_nan()), "{bad} {inference:?}");
            assert!(inference.hidden[d..2 * d].iter().all(|h| h.is_nan()), "{bad} {inference:?}");
            for (place, row) in [(0, [0.5, -1.0]), (2, [0.25, 2.0])] {
                let alone = teacher.infer(&row, 1).unwrap();
                assert!(alone.logits.iter().all(|z| z.is_finite()));
                assert_eq!(bits(&alone.logits), bits(&inference.logits[place * 3..][..3]));
                assert_eq!(bits(&alone.hidden), bits(&inference.hidden[place * d..][..d]));
            }
        }
    }
}

/// The input is finite; the sum of a hidden unit is not, to either side.
#[test]
fn an_overflow_inside_is_no_answer_either() {
    let config = ModelConfig::Mlp(MlpConfig::new(64, vec![1, 2], 2));
    let dir = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(TrainerConfig::new(config.clone(), 1)).unwrap();
    trainer.save_model(dir.path()).unwrap();
    let tensors = read_tensors(&dir.path().join("model.safetensors"), &config.tensors()).unwrap();
    let teacher = Classifier::load(dir.path()).unwrap();
    for sign in [1.0, -1.0] {
        let weight = &tensors["layers.0.weight"].1;
        let input: Vec<f32> = weight.iter().map(|w| sign * w.signum() * f32::MAX).collect();
        let inference = teacher.infer(&input, 1).unwrap();
        assert!(inference.logits.iter().all(|z| z.is_nan()), "{inference:?}");
        assert!(trainer.evaluate(&input, 1, &[0]).is_err());
    }
}

#[test]
fn sizes_are_checked() {
    let teacher = classifier(MlpConfig::new(3, vec![4], 2));
    for (elements, rows) in [(5, 2), (6, 1), (0, 1), (3, usize::MAX)] {
        let error = teacher.infer(&vec![0.0; elements], rows).unwrap_err().to_string();
        assert!(error.contains(&format!("input has {elements} elements")), "{error}");
    }
    assert_eq!(teacher.infer(&[], 0).unwrap().logits, [0.0; 0]);
    assert_eq!((teacher.parameters(), teacher.classes(), teacher.input_width()), (26, 2, 3));
}
