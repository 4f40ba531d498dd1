//! Labels that are not labels are errors that say which row and what was expected.

use stillhouse_nn::{LossConfig, SoftTarget};

use crate::support::loss_and_gradient;

const NAN: f32 = f32::NAN;

fn refusal(hard: Option<&[u32]>, soft: Option<&SoftTarget>, alpha: f64) -> String {
    let config = LossConfig { alpha, ..LossConfig::default() };
    let logits = vec![0.5; 2 * 3];
    loss_and_gradient(&logits, 2, hard, soft, &config).unwrap_err().to_string()
}

#[track_caller]
fn refused(target: &SoftTarget, words: &[&str]) {
    let error = refusal(None, Some(target), 1.0);
    for word in words {
        assert!(error.contains(word), "{error:?} lacks {word:?}");
    }
}

#[test]
fn dense() {
    let good = [0.25f32, 0.5, 0.25];
    let second = |row: [f32; 3]| good.into_iter().chain(row).collect::<Vec<f32>>();
    refused(&SoftTarget::Probabilities(vec![0.5; 5]), &["soft labels has 5", "expected 6"]);
    for row in [[NAN, 0.5, 0.5], [-0.5, 1.0, 0.5], [0.9, 0.9, 0.9], [0.0; 3]] {
        refused(&SoftTarget::Probabilities(second(row)), &["of row 1", "expected 1 within"]);
    }
    // Logits in place of log-probabilities.
    refused(&SoftTarget::LogProbabilities(vec![3.0; 6]), &["of row 0", "expected 1 within"]);
    refused(&SoftTarget::Logits(second([1.0, f32::INFINITY, 0.0])), &["logit of row 1 is inf"]);
}

#[test]
fn top_k() {
    let make = |k: usize, ids: Vec<u32>, log_p: f32, tail: Vec<f32>| SoftTarget::TopK {
        k,
        log_probabilities: vec![log_p; ids.len()],
        ids,
        log_tail_mass: tail,
    };
    let (quarter, half) = (0.25f32.ln(), 0.5f32.ln());
    let tail = || vec![half; 2];
    refused(&make(0, vec![], quarter, tail()), &["k is 0", "1 to the number of classes"]);
    refused(&make(4, vec![0; 8], quarter, tail()), &["k is 4"]);
    refused(&make(2, vec![0, 1, 0], quarter, tail()), &["ids has 3", "expected 4"]);
    refused(&make(2, vec![0, 1, 0, 1], quarter, vec![half]), &["log_tail_mass has 1"]);
    refused(&make(2, vec![0, 1, 0, 3], quarter, tail()), &["id of row 1 is 3", "0 to 2"]);
    refused(&make(2, vec![0, 1, 2, 2], quarter, tail()), &["id of row 1 is 2", "once"]);
    refused(&make(2, vec![0, 1, 0, 1], half, tail()), &["of row 0 is 1.49999"]);
    refused(&make(2, vec![0, 1, 0, 1], NAN, tail()), &["of row 0 is NaN"]);
    refused(&make(usize::MAX, vec![], half, tail()), &["k is"]);
    let renormalized = LossConfig {
        alpha: 1.0,
        top_k_form: stillhouse_nn::TopKForm::Renormalized,
        ..LossConfig::default()
    };
    let all_in_tail = make(1, vec![0, 1], f32::NEG_INFINITY, vec![0.0; 2]);
    let error = loss_and_gradient(&[0.5; 6], 2, None, Some(&all_in_tail), &renormalized);
    assert!(error.unwrap_err().to_string().contains("renormalise"));
}

#[test]
fn sampled() {
    let make = |distinct: [u32; 2], ids: &[u32], counts: &[u32]| SoftTarget::Sampled {
        draws: 4,
        distinct: distinct.to_vec(),
        ids: ids.to_vec(),
        counts: counts.to_vec(),
    };
    refused(&make([1, 2], &[0, 1], &[4, 4]), &["sampled ids has 2", "expected 3"]);
    refused(&make([1, 1], &[0, 1], &[4]), &["sampled counts has 1", "expected 2"]);
    refused(&make([1, 1], &[0, 1], &[4, 3]), &["counts of row 1 is 3", "4"]);
    refused(&make([1, 1], &[0, 9], &[4, 4]), &["id of row 1 is 9"]);
    refused(&make([u32::MAX, u32::MAX], &[0], &[4]), &["sampled ids has 1"]);
    refused(&make([2, 0], &[0, 1], &[2, 2]), &["counts of row 1 is 0"]);
}

#[test]
fn hard_and_missing() {
    let soft = SoftTarget::Logits(vec![0.0; 6]);
    assert!(refusal(Some(&[0]), Some(&soft), 0.5).contains("hard labels has 1"));
    let error = refusal(Some(&[0, 3]), Some(&soft), 0.5);
    assert_eq!(error, "hard label of row 1 is 3; expected 0 to 2");
    assert!(refusal(None, Some(&soft), 0.5).contains("hard labels have the weight 0.5, and"));
    assert!(refusal(Some(&[0, 1]), None, 0.5).contains("soft labels have the weight 0.5, and"));
    assert!(refusal(Some(&[0, 1]), None, 1.0).contains("soft labels have the weight 1, and"));
    assert!(refusal(Some(&[0, 1]), Some(&soft), 1.5).contains("alpha is 1.5; expected 0 to 1"));
}

#[test]
fn labels_of_no_weight_may_be_left_out() {
    let soft = SoftTarget::Logits(vec![0.0; 6]);
    let of = |alpha, hard, soft| {
        let config = LossConfig { alpha, ..LossConfig::default() };
        loss_and_gradient(&[0.5; 6], 2, hard, soft, &config).unwrap().0
    };
    let hard = Some([0, 1].as_slice());
    assert_eq!((of(0.0, hard, None).soft, of(1.0, None, Some(&soft)).hard), (None, None));
    assert!(of(0.0, hard, Some(&soft)).soft.is_some());
    // The weights that count are those that are named.
    let weighted = |hard_weight, soft_weight, hard, soft| {
        let (hard_weight, soft_weight) = (Some(hard_weight), Some(soft_weight));
        let config = LossConfig { hard_weight, soft_weight, ..LossConfig::default() };
        loss_and_gradient(&[0.5; 6], 2, hard, soft, &config)
    };
    assert!(
        weighted(1.0, 0.0, hard, None).is_ok() && weighted(0.0, 1.0, None, Some(&soft)).is_ok()
    );
    assert!(
        weighted(1.0, 0.5, hard, None).is_err() && weighted(0.5, 1.0, None, Some(&soft)).is_err()
    );
}

/// Without rows, or without classes, there is no mean to take.
#[test]
fn empty_logits() {
    use candle_core::{DType, Device, Tensor};
    let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
    for (shape, hard, size) in [((0, 3), &[][..], 3), ((2, 0), &[0, 0], 2), ((0, 0), &[], 1)] {
        for dtype in [DType::F32, DType::F64] {
            let logits = Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
            let error = stillhouse_nn::loss::loss(&logits, Some(hard), None, &config).unwrap_err();
            let expected = format!("logits has 0 elements; expected {size}");
            assert_eq!(error.to_string(), expected);
        }
    }
}
