//! No mass, all mass in one class, and logits of +-1e4 give finite and correct values.

use stillhouse_nn::{Divergence, LossConfig, SoftTarget, TopKForm};

use crate::support::{DIVERGENCES, loss_and_gradient};

const INF: f32 = f32::INFINITY;

fn distilled(divergence: Divergence, logits: &[f64], target: &SoftTarget) -> (f64, Vec<f64>) {
    let config = LossConfig { alpha: 1.0, temperature: 1.0, divergence, ..LossConfig::default() };
    let (parts, gradient) = loss_and_gradient(logits, 1, None, Some(target), &config).unwrap();
    assert!(parts.total.is_finite(), "{divergence:?} {target:?}");
    assert!(gradient.iter().all(|g| g.is_finite()), "{divergence:?} {target:?} {gradient:?}");
    (parts.total, gradient)
}

/// The student is certain of class 0 and the teacher of class 1, by logits 2e4 apart.
#[test]
fn opposite_certainties() {
    let student = [1e4, -1e4];
    let teacher = SoftTarget::Logits(vec![-1e4, 1e4]);
    let expected = [
        (Divergence::ForwardKl, 2e4),
        (Divergence::CrossEntropy, 2e4),
        (Divergence::ReverseKl, 2e4),
        (Divergence::JensenShannon { beta: 0.5 }, 2f64.ln()),
        (Divergence::SkewKl { lambda: 0.1 }, 10f64.ln()),
        (Divergence::TotalVariation, 1.0),
        (Divergence::LogitMse, 4e8),
    ];
    for (divergence, expected) in expected {
        let (value, _) = distilled(divergence, &student, &teacher);
        assert!((value - expected).abs() < 1e-9 * expected, "{divergence:?}: {value}");
    }
    let (_, gradient) = distilled(Divergence::ForwardKl, &student, &teacher);
    assert_eq!(gradient, [1.0, -1.0]);
}

/// A one-hot teacher in every encoding that can say so, against a uniform student.
#[test]
fn one_hot_teachers() {
    let uniform = [3.0; 4];
    let encodings = [
        SoftTarget::Probabilities(vec![0.0, 1.0, 0.0, 0.0]),
        SoftTarget::LogProbabilities(vec![-INF, 0.0, -INF, -INF]),
        SoftTarget::TopK {
            k: 1,
            ids: vec![1],
            log_probabilities: vec![0.0],
            log_tail_mass: vec![-INF],
        },
        SoftTarget::TopK {
            k: 4,
            ids: vec![2, 1, 0, 3],
            log_probabilities: vec![-INF, 0.0, -INF, -INF],
            log_tail_mass: vec![-INF],
        },
        SoftTarget::Sampled { draws: 3, distinct: vec![1], ids: vec![1], counts: vec![3] },
    ];
    let q = 0.25f64;
    for target in &encodings {
        for divergence in [Divergence::ForwardKl, Divergence::CrossEntropy] {
            let (value, gradient) = distilled(divergence, &uniform, target);
            assert!((value - 4f64.ln()).abs() < 1e-12, "{divergence:?} {target:?}: {value}");
            for (i, g) in gradient.iter().enumerate() {
                let expected = q - f64::from(u8::from(i == 1));
                assert!((g - expected).abs() < 1e-12, "{divergence:?} {target:?}");
            }
        }
        if matches!(target, SoftTarget::Sampled { .. }) {
            continue;
        }
        let (value, _) = distilled(Divergence::TotalVariation, &uniform, target);
        assert!((value - 0.75).abs() < 1e-12, "{target:?}: {value}");
        let (value, _) = distilled(Divergence::SkewKl { lambda: 0.5 }, &uniform, target);
        assert!((value - 1.6f64.ln()).abs() < 1e-12, "{target:?}: {value}");
        // An exact 0 counts as 2^-149, the smallest f32, so the student pays for mass there.
        let floor = 149.0 * 2f64.ln();
        let tail_entropy = match target {
            SoftTarget::TopK { k: 1, .. } => 0.75 * 0.75f64.ln(),
            _ => 0.75 * 0.25f64.ln(),
        };
        let expected = q * q.ln() + tail_entropy + 0.75 * floor;
        let (value, gradient) = distilled(Divergence::ReverseKl, &uniform, target);
        assert!((value - expected).abs() < 1e-9, "{target:?}: {value} {expected}");
        assert!(gradient[1] < 0.0, "towards the teacher's class: {gradient:?}");
        distilled(Divergence::JensenShannon { beta: 0.5 }, &uniform, target);
    }
}

/// A student that agrees is at distance 0 with gradient 0, however extreme both are.
#[test]
fn agreement_is_zero() {
    for scale in [0.0f32, 1.0, 1e4] {
        let teacher = SoftTarget::Logits(vec![scale, -scale, 0.5 * scale]);
        let student = [f64::from(scale), f64::from(-scale), f64::from(0.5 * scale)];
        for divergence in DIVERGENCES {
            if divergence == Divergence::CrossEntropy {
                continue;
            }
            let (value, gradient) = distilled(divergence, &student, &teacher);
            assert!(value.abs() < 1e-15, "{divergence:?} {scale}: {value}");
            assert!(gradient.iter().all(|g| g.abs() < 1e-15), "{divergence:?} {scale}");
        }
    }
}

/// The student's logits are far beyond what exp can hold, in every place of the row.
#[test]
fn huge_students_are_finite_on_sparse_labels() {
    let known = |ids: Vec<u32>| SoftTarget::TopK {
        k: 2,
        ids,
        log_probabilities: vec![0.5f32.ln(), 0.25f32.ln()],
        log_tail_mass: vec![0.25f32.ln()],
    };
    for logits in [[1e4, -1e4, 0.0, -1e4], [-1e4; 4], [1e4; 4], [-1e4, 1e4, 1e4, 0.0]] {
        for ids in [vec![0, 1], vec![3, 2]] {
            for divergence in DIVERGENCES.into_iter().filter(|&d| d != Divergence::LogitMse) {
                distilled(divergence, &logits, &known(ids.clone()));
                let config = LossConfig {
                    alpha: 1.0,
                    temperature: 1.0,
                    divergence,
                    top_k_form: TopKForm::Renormalized,
                };
                let soft = known(ids.clone());
                let (parts, _) = loss_and_gradient(&logits, 1, None, Some(&soft), &config).unwrap();
                assert!(parts.total.is_finite());
            }
        }
    }
}
