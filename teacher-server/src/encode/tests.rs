//! Encodings against one another and against closed forms.

use super::*;

const LOGITS: [f32; 8] = [1.0, 3.0, 3.0, -2.0, 0.5, -1e4, 1e4, 0.0];

fn forward() -> Forward {
    Forward { rows: 2, members: 1, logits: LOGITS.to_vec(), hidden: vec![1.0, 2.0, 3.0, 4.0] }
}

/// As a single model's labels are encoded under the default rule.
fn encode(
    forward: &Forward,
    encoding: &Encoding,
    temperatures: &[f32],
) -> Result<(Vec<Labels>, Vec<RowError>), ServeError> {
    super::encode(
        &Computed::Logits(forward.clone()),
        Rule::default(),
        encoding,
        temperatures,
        &Wanted::default(),
    )
}

fn batch(encoding: &Encoding, temperature: f32) -> LabelBatch {
    let (labels, errors) = encode(&forward(), encoding, &[temperature]).unwrap();
    assert!(errors.is_empty());
    labels::decode(&labels[0]).unwrap()
}

fn dense(kind: DenseKind, temperature: f32) -> Vec<f32> {
    match batch(&Encoding::Dense { kind, dtype: DType::F32 }, temperature).labels {
        SoftLabels::Dense { values, .. } => values,
        other => panic!("{other:?}"),
    }
}

#[test]
fn dense_kinds_agree() {
    for temperature in [0.5, 1.0, 4.0, 20.0] {
        let logs = dense(DenseKind::LogProbabilities, temperature);
        let probabilities = dense(DenseKind::Probabilities, temperature);
        for (row, logits) in LOGITS.chunks(4).enumerate() {
            let scaled = logits.iter().map(|z| f64::from(*z) / f64::from(temperature));
            let top = scaled.clone().fold(f64::MIN, f64::max);
            let sum: f64 = scaled.clone().map(|x| (x - top).exp()).sum();
            for (class, x) in scaled.enumerate() {
                let expected = x - top - sum.ln();
                let at = row * 4 + class;
                let log = f64::from(logs[at]);
                assert!(
                    (log - expected).abs() <= 1e-6 * expected.abs().max(1e-6),
                    "{log} {expected}"
                );
                assert!((f64::from(probabilities[at]) - expected.exp()).abs() < 1e-7);
            }
        }
    }
    assert_eq!(dense(DenseKind::Logits, 1.0), LOGITS);
}

#[test]
fn top_k_and_ids_are_the_dense_values_and_what_is_left() {
    let logs = dense(DenseKind::LogProbabilities, 2.0);
    let SoftLabels::TopK { ids, log_probabilities, log_tail_mass, .. } =
        batch(&Encoding::TopK { k: 2, dtype: DType::F32 }, 2.0).labels
    else {
        panic!("not top_k")
    };
    assert_eq!(ids, [1, 2, 2, 0], "equal logits in order of id");
    for row in 0..2 {
        let mut mass = 0.0_f64;
        for j in 0..2 {
            let id = ids[row * 2 + j] as usize;
            assert_eq!(log_probabilities[row * 2 + j], logs[row * 4 + id]);
            mass += f64::from(log_probabilities[row * 2 + j]).exp();
        }
        assert!((f64::from(log_tail_mass[row]).exp() - (1.0 - mass)).abs() < 1e-6);
    }

    let ids = vec![3, 0, 1, 2];
    let encoding = Encoding::Ids { ids_per_row: 2, ids, dtype: DType::F32 };
    let SoftLabels::Ids { log_probabilities, log_tail_mass, .. } = batch(&encoding, 2.0).labels
    else {
        panic!("not ids")
    };
    assert_eq!(log_probabilities, [logs[3], logs[0], logs[5], logs[6]]);
    let left = f64::from(logs[1]).exp() + f64::from(logs[2]).exp();
    assert!((f64::from(log_tail_mass[0]).exp() - left).abs() < 1e-6);
}

#[test]
fn every_class_leaves_no_tail() {
    let SoftLabels::TopK { log_tail_mass, .. } =
        batch(&Encoding::TopK { k: 4, dtype: DType::Bf16 }, 1.0).labels
    else {
        panic!("not top_k")
    };
    assert_eq!(log_tail_mass, [f32::NEG_INFINITY; 2]);
}

#[test]
fn a_log_probability_below_the_dtypes_range_is_zero_mass() {
    let encoding = Encoding::Dense { kind: DenseKind::LogProbabilities, dtype: DType::F16 };
    let SoftLabels::Dense { values, .. } = batch(&encoding, 0.1).labels else {
        panic!("not dense")
    };
    assert_eq!(values[5], f32::NEG_INFINITY);
    assert!(values[..4].iter().all(|x| x.is_finite()));
}

#[test]
fn labels_that_nobody_waits_for_are_not_made() {
    let computed = Computed::Logits(forward());
    let kind = DenseKind::Logits;
    let encoding = Encoding::Dense { kind, dtype: DType::F32 };
    let made = |wanted| super::encode(&computed, Rule::default(), &encoding, &[1.0], wanted);
    let until = |time| Wanted { until: Some(time), ..Wanted::default() };
    let now = clock::now();
    let wanted = until(now);
    assert!(matches!(made(&wanted), Err(ServeError::Deadline)));
    let wanted = until(now + std::time::Duration::from_secs(60));
    made(&wanted).unwrap();
    wanted.gone.store(true, Ordering::Relaxed);
    assert!(matches!(made(&wanted), Err(ServeError::Cancelled)));
}

#[test]
fn several_temperatures_come_from_one_forward_in_order() {
    let encoding = Encoding::Dense { kind: DenseKind::LogProbabilities, dtype: DType::F32 };
    let (labels, _) = encode(&forward(), &encoding, &[4.0, 1.0, 20.0]).unwrap();
    let got: Vec<f32> = labels.iter().map(|labels| labels.temperature).collect();
    assert_eq!(got, [4.0, 1.0, 20.0]);
    for labels in &labels {
        let SoftLabels::Dense { values, .. } = labels::decode(labels).unwrap().labels else {
            panic!("not dense")
        };
        assert_eq!(values, dense(DenseKind::LogProbabilities, labels.temperature));
    }
    let hidden = Encoding::Hidden { dtype: DType::F32 };
    assert_eq!(encode(&forward(), &hidden, &[4.0, 1.0]).unwrap().0.len(), 1);
}

#[test]
fn a_row_that_is_not_finite_is_left_out_and_named() {
    let mut forward = forward();
    forward.logits[2] = f32::NAN;
    for encoding in [
        Encoding::Dense { kind: DenseKind::Probabilities, dtype: DType::F32 },
        Encoding::TopK { k: 1, dtype: DType::F32 },
        Encoding::Ids { ids_per_row: 1, ids: vec![0, 2], dtype: DType::F32 },
        Encoding::Sampled { draws: 3, seed: 1 },
        Encoding::Hidden { dtype: DType::F32 },
    ] {
        let (labels, errors) = encode(&forward, &encoding, &[1.0]).unwrap();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].row, 0);
        assert_eq!(labels::decode(&labels[0]).unwrap().rows, 1, "{encoding:?}");
    }
    forward.logits[4] = f32::INFINITY;
    let encoding = Encoding::TopK { k: 1, dtype: DType::F32 };
    let (labels, errors) = encode(&forward, &encoding, &[1.0]).unwrap();
    assert_eq!(errors.len(), 2);
    assert_eq!(labels::decode(&labels[0]).unwrap().rows, 0);
}

/// Three members, two rows, four classes: the second row's members do not agree on the best class.
fn several() -> Forward {
    let logits = [
        [1.0, 3.0, 3.0, -2.0, 0.5, -1e4, 1e4, 0.0],
        [0.0, 2.0, -1.0, 0.5, 4.0, 3.0, 0.0, -1.0],
        [-2.0, 1.0, 0.0, 5.0, 2.0, 9.0, -3.0, 1.0],
    ];
    Forward { rows: 2, members: 3, logits: logits.concat(), hidden: Vec::new() }
}

fn labels_of(forward: &Forward, rule: Rule, encoding: &Encoding, temperature: f32) -> LabelBatch {
    let computed = Computed::Logits(forward.clone());
    let (labels, errors) =
        super::encode(&computed, rule, encoding, &[temperature], &Wanted::default()).unwrap();
    assert!(errors.is_empty());
    labels::decode(&labels[0]).unwrap()
}

fn dense_of(forward: &Forward, rule: Rule, kind: DenseKind, temperature: f32) -> Vec<f32> {
    let encoding = Encoding::Dense { kind, dtype: DType::F32 };
    match labels_of(forward, rule, &encoding, temperature).labels {
        SoftLabels::Dense { values, .. } => values,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_arithmetic_mean_is_that_of_the_members_own_probabilities() {
    let ensemble = several();
    for temperature in [0.5, 1.0, 4.0, 20.0] {
        let own: Vec<Vec<f32>> = ensemble
            .logits
            .chunks(8)
            .map(|logits| {
                let member = Forward { members: 1, logits: logits.to_vec(), ..several() };
                dense_of(&member, Rule::Arithmetic, DenseKind::Probabilities, temperature)
            })
            .collect();
        let found = dense_of(&ensemble, Rule::Arithmetic, DenseKind::Probabilities, temperature);
        let logs = dense_of(&ensemble, Rule::Arithmetic, DenseKind::LogProbabilities, temperature);
        for at in 0..8 {
            let mean: f64 = own.iter().map(|member| f64::from(member[at])).sum::<f64>() / 3.0;
            assert!((f64::from(found[at]) - mean).abs() < 1e-7, "{} {mean}", found[at]);
            if mean > 1e-30 {
                assert!((f64::from(logs[at]) - mean.ln()).abs() < 1e-6 * mean.ln().abs().max(1.0));
            }
        }
    }
}

#[test]
fn the_geometric_mean_is_a_model_whose_logits_are_the_mean() {
    let ensemble = several();
    let logits = dense_of(&ensemble, Rule::Geometric, DenseKind::Logits, 1.0);
    let mean = |at: usize| ensemble.logits.iter().skip(at).step_by(8).sum::<f32>() / 3.0;
    for (at, found) in logits.iter().enumerate() {
        assert!((found - mean(at)).abs() <= 1e-6 * mean(at).abs().max(1.0), "{found}");
    }
    let single = Forward { members: 1, logits, ..several() };
    for temperature in [0.5, 1.0, 4.0, 20.0] {
        let kind = DenseKind::Probabilities;
        let found = dense_of(&ensemble, Rule::Geometric, kind, temperature);
        let expected = dense_of(&single, Rule::Geometric, kind, temperature);
        found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
    }
}

#[test]
fn every_encoding_tells_the_same_of_an_ensemble() {
    for rule in Rule::ALL {
        let forward = several();
        let logs = dense_of(&forward, rule, DenseKind::LogProbabilities, 2.0);
        let encoding = Encoding::TopK { k: 2, dtype: DType::F32 };
        let SoftLabels::TopK { ids, log_probabilities, log_tail_mass, .. } =
            labels_of(&forward, rule, &encoding, 2.0).labels
        else {
            panic!("not top_k")
        };
        for row in 0..2 {
            let all = &logs[row * 4..][..4];
            let (ids, values) = (&ids[row * 2..][..2], &log_probabilities[row * 2..][..2]);
            let mut sorted = all.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(values, &sorted[..2], "{rule:?}");
            assert!(ids.iter().zip(values).all(|(id, value)| all[*id as usize] == *value));
            let rest: f32 = sorted[2..].iter().map(|x| x.exp()).sum();
            assert!((log_tail_mass[row].exp() - rest).abs() < 1e-6);
        }

        let ids = vec![3, 0, 1, 2];
        let encoding = Encoding::Ids { ids_per_row: 2, ids, dtype: DType::F32 };
        let SoftLabels::Ids { log_probabilities, .. } =
            labels_of(&forward, rule, &encoding, 2.0).labels
        else {
            panic!("not ids")
        };
        assert_eq!(log_probabilities, [logs[3], logs[0], logs[5], logs[6]]);

        let draws = 40_000;
        let encoding = Encoding::Sampled { draws, seed: 3 };
        let SoftLabels::Sampled { distinct, ids, counts, .. } =
            labels_of(&forward, rule, &encoding, 2.0).labels
        else {
            panic!("not sampled")
        };
        let mut drawn = ids.into_iter().zip(counts);
        for (row, distinct) in distinct.into_iter().enumerate() {
            for (id, count) in drawn.by_ref().take(distinct.into()) {
                let p = f64::from(logs[row * 4 + id as usize]).exp();
                let expected = f64::from(draws) * p;
                // Six standard deviations; the seed is fixed, so this cannot flicker.
                let slack = 6.0 * (expected * (1.0 - p)).sqrt() + 1.0;
                assert!((f64::from(count) - expected).abs() < slack, "{count} {expected}");
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_in_any_member_is_left_out() {
    for rule in Rule::ALL {
        for member in 0..3 {
            let mut forward = several();
            forward.logits[member * 8 + 6] = f32::NAN;
            let encoding = Encoding::Dense { kind: DenseKind::Probabilities, dtype: DType::F32 };
            let computed = Computed::Logits(forward.clone());
            let (labels, errors) =
                super::encode(&computed, rule, &encoding, &[1.0], &Wanted::default()).unwrap();
            assert_eq!(errors.iter().map(|error| error.row).collect::<Vec<_>>(), [1]);
            let SoftLabels::Dense { values, .. } = labels::decode(&labels[0]).unwrap().labels
            else {
                panic!("not dense")
            };
            let whole = dense_of(&several(), rule, DenseKind::Probabilities, 1.0);
            assert_eq!(values, whole[..4]);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    for rule in Rule::ALL {
        let both = dense_of(&several(), rule, DenseKind::LogProbabilities, 3.0);
        for row in 0..2 {
            let logits =
                several().logits.chunks(4).skip(row).step_by(2).collect::<Vec<_>>().concat();
            let alone = Forward { rows: 1, logits, ..several() };
            let alone = dense_of(&alone, rule, DenseKind::LogProbabilities, 3.0);
            assert_eq!(alone, both[row * 4..][..4]);
        }
    }
}

/// A block of rows that several threads make labels of, with one row among them that has none: labels in
/// order, each drawn and named by its own row's number.
#[test]
fn rows_on_several_threads_are_as_on_one() {
    let (rows, classes) = (50, 4001);
    let mut rng = stillhouse_nn::Philox::new(7, 0);
    let mut logits: Vec<f32> = (0..rows * classes).map(|_| 3.0 * rng.normal() as f32).collect();
    logits[17 * classes + 5] = f32::NAN;
    let forward = Forward { rows, members: 1, logits, hidden: vec![] };
    let whole = Rows::of(0, &forward, Rule::default());
    assert!(whole.parts().len() > 2);
    let ids = (0..2 * rows as u32).map(|i| 7 * i).collect();
    for encoding in [
        Encoding::Dense { kind: DenseKind::LogProbabilities, dtype: DType::F32 },
        Encoding::TopK { k: 9, dtype: DType::F32 },
        Encoding::Ids { ids_per_row: 2, ids, dtype: DType::F32 },
        Encoding::Sampled { draws: 11, seed: 3 },
    ] {
        let (labels, errors) = encode(&forward, &encoding, &[1.5, 1.0]).unwrap();
        assert_eq!(errors.iter().map(|error| error.row).collect::<Vec<_>>(), [17]);
        for (labels, temperature) in labels.iter().zip([1.5, 1.0]) {
            let found = labels::decode(labels).unwrap();
            assert_eq!(found.rows, rows - 1);
            assert_eq!(found.labels, whole.labels(&encoding, temperature), "{encoding:?}");
        }
    }
}
