//! The gradient of every divergence on every encoding it supports equals central differences, and
//! the others are refused by name.

use stillhouse_nn::{Divergence, LossConfig, Philox, SoftTarget, TopKForm};

use crate::support::{DIVERGENCES, bottom_k, log_softmax, loss_and_gradient, normals, top_k};

const ROWS: usize = 3;
const CLASSES: usize = 7;
const T: f64 = 2.5;

fn targets() -> Vec<SoftTarget> {
    let mut rng = Philox::new(21, 0);
    let teacher: Vec<f32> =
        normals(&mut rng, ROWS * CLASSES, 3.0).iter().map(|&z| z as f32).collect();
    let exact: Vec<f64> = teacher.iter().map(|&z| f64::from(z)).collect();
    let log_p = log_softmax(&exact, CLASSES, T);
    vec![
        SoftTarget::LogProbabilities(log_p.iter().map(|&x| x as f32).collect()),
        SoftTarget::Probabilities(log_p.iter().map(|&x| x.exp() as f32).collect()),
        SoftTarget::Logits(teacher),
        top_k(&log_p, CLASSES, 3),
        top_k(&log_p, CLASSES, CLASSES),
        bottom_k(&log_p, CLASSES, 2),
        SoftTarget::Sampled {
            draws: 5,
            distinct: vec![2, 1, 3],
            ids: vec![6, 0, 3, 1, 2, 4],
            counts: vec![4, 1, 5, 1, 1, 3],
        },
    ]
}

fn supported(divergence: Divergence, target: &SoftTarget) -> bool {
    match target {
        SoftTarget::Logits(_) => true,
        SoftTarget::Sampled { .. } => {
            matches!(divergence, Divergence::ForwardKl | Divergence::CrossEntropy)
        }
        _ => divergence != Divergence::LogitMse,
    }
}

#[test]
fn gradients_equal_central_differences() {
    let logits = normals(&mut Philox::new(22, 0), ROWS * CLASSES, 2.0);
    let hard = Some([2, 0, 5].as_slice());
    let mut checked = 0;
    for divergence in DIVERGENCES {
        for top_k_form in [TopKForm::TailBucket, TopKForm::Renormalized] {
            for target in targets() {
                if !supported(divergence, &target) {
                    continue;
                }
                let config = LossConfig {
                    alpha: 0.7,
                    temperature: T,
                    divergence,
                    top_k_form,
                    ..LossConfig::default()
                };
                let of = |z: &[f64]| loss_and_gradient(z, ROWS, hard, Some(&target), &config);
                let (_, gradient) = of(&logits).unwrap();
                for (i, &found) in gradient.iter().enumerate() {
                    let at = |step: f64| {
                        let mut moved = logits.clone();
                        moved[i] += step;
                        of(&moved).unwrap().0.total
                    };
                    let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
                    let what = format!("{divergence:?} on {} {top_k_form:?}", target.encoding());
                    assert!((found - expected).abs() < 1e-8, "{what}: {found} {expected}");
                    checked += 1;
                }
            }
        }
    }
    // Six divergences on six encodings, two of them on samples, MSE on logits; in two forms.
    assert_eq!(checked, (6 * 6 + 2 + 1) * 2 * ROWS * CLASSES);
}

/// Weights of their own, and one beside alpha.
#[test]
fn weighted_gradients_equal_central_differences() {
    let logits = normals(&mut Philox::new(24, 0), ROWS * CLASSES, 2.0);
    let hard = [2, 0, 5];
    let target = &targets()[2];
    for (hard_weight, soft_weight) in
        [(Some(2.0), Some(0.25)), (Some(0.0), Some(1.5)), (Some(3.0), None), (None, Some(0.5))]
    {
        let config = LossConfig {
            alpha: 0.7,
            hard_weight,
            soft_weight,
            temperature: T,
            ..LossConfig::default()
        };
        let of = |z: &[f64]| loss_and_gradient(z, ROWS, Some(&hard), Some(target), &config);
        let (parts, gradient) = of(&logits).unwrap();
        let (of_hard, of_soft) = (hard_weight.unwrap_or(0.3), soft_weight.unwrap_or(0.7));
        let total = of_hard * parts.hard.unwrap() + of_soft * parts.soft.unwrap();
        assert!((parts.total - total).abs() < 1e-12, "{parts:?} {total}");
        for (i, &found) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut moved = logits.clone();
                moved[i] += step;
                of(&moved).unwrap().0.total
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((found - expected).abs() < 1e-8, "{config:?}: {found} {expected}");
        }
    }
}

/// With a class that is not the most probable named, the gradient of the KL is q - p for it, and
/// the tail's difference split by the student's shares for the others.
#[test]
fn a_dominating_tail_in_closed_form() {
    let teacher = [5.0, -1.0, 4.5, 0.0, 3.0];
    let (student, temperature, ids) = ([0.5, 1.0, -2.0, 0.25, 1.5], 2.0, [3, 1]);
    let log_p = log_softmax(&teacher, 5, temperature);
    let soft = bottom_k(&log_p, 5, 2);
    let SoftTarget::TopK { ids: found, log_tail_mass, .. } = &soft else { panic!("{soft:?}") };
    assert_eq!(found, &[1, 3]);
    assert!(log_tail_mass[0].exp() > 0.9);
    let q: Vec<f64> = log_softmax(&student, 5, temperature).iter().map(|x| x.exp()).collect();
    let p: Vec<f64> = log_p.iter().map(|x| x.exp()).collect();
    let tail = |of: &[f64]| of[0] + of[2] + of[4];
    let config = LossConfig { alpha: 1.0, temperature, ..LossConfig::default() };
    let (parts, gradient) = loss_and_gradient(&student, 1, None, Some(&soft), &config).unwrap();
    let named = ids.iter().map(|&i| p[i] * (p[i] / q[i]).ln()).sum::<f64>();
    let value = named + tail(&p) * (tail(&p) / tail(&q)).ln();
    assert!((parts.total - temperature * temperature * value).abs() < 1e-6, "{parts:?} {value}");
    for (i, found) in gradient.iter().enumerate() {
        let mass = if ids.contains(&i) { p[i] } else { tail(&p) * q[i] / tail(&q) };
        let expected = temperature * (q[i] - mass);
        assert!((found - expected).abs() < 1e-6, "{i}: {found} {expected}");
    }
}

#[test]
fn what_has_no_meaning_is_refused_by_both_names() {
    let logits = vec![0.0; ROWS * CLASSES];
    for divergence in DIVERGENCES {
        for target in targets() {
            let config =
                LossConfig { alpha: 1.0, temperature: T, divergence, ..LossConfig::default() };
            let result = loss_and_gradient(&logits, ROWS, None, Some(&target), &config);
            assert_eq!(result.is_ok(), supported(divergence, &target));
            if let Err(error) = result {
                let error = error.to_string();
                assert!(error.contains(divergence.name()), "{error}");
                assert!(error.contains(target.encoding()), "{error}");
            }
        }
    }
}

/// Softmax ignores a shift of all logits, so the gradient of all but the MSE sums to 0.
#[test]
fn gradients_sum_to_zero() {
    let logits = normals(&mut Philox::new(23, 0), ROWS * CLASSES, 2.0);
    for divergence in DIVERGENCES.into_iter().filter(|&d| d != Divergence::LogitMse) {
        for target in targets().iter().filter(|target| supported(divergence, target)) {
            let config =
                LossConfig { alpha: 1.0, temperature: T, divergence, ..LossConfig::default() };
            let (_, gradient) =
                loss_and_gradient(&logits, ROWS, None, Some(target), &config).unwrap();
            for row in gradient.chunks_exact(CLASSES) {
                assert!(row.iter().sum::<f64>().abs() < 1e-12, "{divergence:?}");
            }
        }
    }
}

/// Two parts of a graph may use the loss's gradient with any weight.
#[test]
fn a_scaled_loss_has_a_scaled_gradient() {
    use candle_core::{Device, Var};
    let z = Var::new(&[[1.0, -0.5, 0.25]], &Device::Cpu).unwrap();
    let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
    let (scalar, _) = stillhouse_nn::loss::loss(z.as_tensor(), Some(&[1]), None, &config).unwrap();
    let of = |scalar: &candle_core::Tensor| -> Vec<f64> {
        let store = scalar.backward().unwrap();
        store.get(&z).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (once, thrice) = (of(&scalar), of(&(&scalar * 3.0).unwrap()));
    for (a, b) in once.iter().zip(thrice) {
        assert!((3.0 * a - b).abs() < 1e-15);
    }
}
