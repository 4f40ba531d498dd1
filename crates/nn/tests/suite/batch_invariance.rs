//! A row's logits and hidden state are the same bits alone and in any batch, at any place.

use proptest::prelude::*;
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
