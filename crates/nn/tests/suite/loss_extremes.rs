//! No mass, all mass in one class, and logits of +-1e4 give the values of the closed form.

use stillhouse_nn::{Divergence, LossConfig, SoftTarget, TopKForm};

use crate::support::{DIVERGENCES, log_softmax, loss_and_gradient, outcomes_apart};

const INF: f32 = f32::INFINITY;
const NONE: f64 = f64::NEG_INFINITY;

fn distilled_in(
    top_k_form: TopKForm,
    divergence: Divergence,
    logits: &[f64],
    target: &SoftTarget,
) -> (f64, Vec<f64>) {
    let config = LossConfig {
        alpha: 1.0,
        temperature: 1.0,
        divergence,
        top_k_form,
        ..LossConfig::default()
    };
    let (parts, gradient) = loss_and_gradient(logits, 1, None, Some(target), &config).unwrap();
    assert!(gradient.iter().all(|g| g.is_finite()), "{divergence:?} {target:?} {gradient:?}");
    (parts.total, gradient)
}

fn distilled(divergence: Divergence, logits: &[f64], target: &SoftTarget) -> (f64, Vec<f64>) {
    distilled_in(TopKForm::TailBucket, divergence, logits, target)
}

#[track_caller]
fn close(found: f64, expected: f64, what: &str) {
    let tolerance = 1e-12 * expected.abs().max(1.0);
    assert!((found - expected).abs() < tolerance, "{what}: {found} {expected}");
}

#[track_caller]
fn all_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    found.iter().zip(expected).for_each(|(x, y)| close(*x, *y, what));
}

/// The divergences that labels of probabilities have, and of draws.
fn of_probabilities() -> impl Iterator<Item = Divergence> {
    DIVERGENCES.into_iter().filter(|&d| d != Divergence::LogitMse)
}

const OF_DRAWS: [Divergence; 2] = [Divergence::ForwardKl, Divergence::CrossEntropy];

/// The student is certain of class 0 and the teacher of class 1.
#[test]
fn opposite_certainties() {
    let student = [1e4, -1e4];
    // What one side says of the other's class: by logits 2e4 apart, or, of an exact 0, 2^-149.
    let apart = SoftTarget::Logits(vec![-1e4, 1e4]);
    let log_apart = SoftTarget::LogProbabilities(vec![-2e4, 0.0]);
    let log_zero = SoftTarget::LogProbabilities(vec![-INF, 0.0]);
    let zero = SoftTarget::Probabilities(vec![0.0, 1.0]);
    let least = 149.0 * 2f64.ln();
    for (teacher, reverse) in [(apart, 2e4), (log_apart, 2e4), (log_zero, least), (zero, least)] {
        let expected = [
            (Divergence::ForwardKl, 2e4, [1.0, -1.0]),
            (Divergence::CrossEntropy, 2e4, [1.0, -1.0]),
            (Divergence::ReverseKl, reverse, [0.0; 2]),
            (Divergence::JensenShannon { beta: 0.5 }, 2f64.ln(), [0.0; 2]),
            (
                Divergence::JensenShannon { beta: 0.2 },
                0.2 * 5f64.ln() + 0.8 * 1.25f64.ln(),
                [0.0; 2],
            ),
            (Divergence::SkewKl { lambda: 0.1 }, 10f64.ln(), [0.0; 2]),
            (Divergence::SkewKl { lambda: 0.0 }, 2e4, [1.0, -1.0]),
            (Divergence::TotalVariation, 1.0, [0.0; 2]),
        ];
        for (divergence, expected, slopes) in expected {
            let (value, gradient) = distilled(divergence, &student, &teacher);
            let what = format!("{divergence:?} {teacher:?}");
            close(value, expected, &what);
            all_close(&gradient, &slopes, &what);
        }
    }
    let apart = SoftTarget::Logits(vec![-1e4, 1e4]);
    let (value, gradient) = distilled(Divergence::LogitMse, &student, &apart);
    close(value, 4e8, "LogitMse");
    all_close(&gradient, &[2e4, -2e4], "LogitMse");
    let draws = SoftTarget::Sampled { draws: 3, distinct: vec![1], ids: vec![1], counts: vec![3] };
    for divergence in OF_DRAWS {
        let (value, gradient) = distilled(divergence, &student, &draws);
        close(value, 2e4, "draws");
        all_close(&gradient, &[1.0, -1.0], "draws");
    }
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
    for target in &encodings {
        let what = format!("{target:?}");
        for divergence in OF_DRAWS {
            let (value, gradient) = distilled(divergence, &uniform, target);
            close(value, 4f64.ln(), &what);
            all_close(&gradient, &[0.25, -0.75, 0.25, 0.25], &what);
        }
        if matches!(target, SoftTarget::Sampled { .. }) {
            continue;
        }
        let of = |divergence| distilled(divergence, &uniform, target);
        close(of(Divergence::TotalVariation).0, 0.75, &what);
        close(of(Divergence::SkewKl { lambda: 0.5 }).0, 1.6f64.ln(), &what);
        // beta p log(p / m) and (1 - beta) q log(q / m), with m = 5/8 at class 1; of the others,
        // apart or together, q / m is 2.
        let jensen_shannon = 0.5 * 1.6f64.ln() + 0.5 * (0.25 * 0.4f64.ln() + 0.75 * 2f64.ln());
        close(of(Divergence::JensenShannon { beta: 0.5 }).0, jensen_shannon, &what);
        // An exact 0 counts as 2^-149, the smallest f32, so the student pays for mass there.
        let tail_entropy = match target {
            SoftTarget::TopK { k: 1, .. } => 0.75 * 0.75f64.ln(),
            _ => 0.75 * 0.25f64.ln(),
        };
        let expected = 0.25 * 0.25f64.ln() + tail_entropy + 0.75 * 149.0 * 2f64.ln();
        let (value, gradient) = of(Divergence::ReverseKl);
        close(value, expected, &what);
        assert!(gradient[1] < 0.0, "towards the teacher's class: {gradient:?}");
    }
}

/// Classes that the teacher gives no mass, to a student that gives them all, some or none.
#[test]
fn zeros_among_others() {
    let log_p = [NONE, 0.25f64.ln(), 0.75f64.ln(), NONE];
    let narrow: Vec<f32> = log_p.iter().map(|&x| x as f32).collect();
    let dense = [
        SoftTarget::Probabilities(vec![0.0, 0.25, 0.75, 0.0]),
        SoftTarget::LogProbabilities(narrow.clone()),
        SoftTarget::TopK {
            k: 4,
            ids: vec![3, 2, 1, 0],
            log_probabilities: narrow.into_iter().rev().collect(),
            log_tail_mass: vec![-INF],
        },
    ];
    let draws =
        SoftTarget::Sampled { draws: 4, distinct: vec![2], ids: vec![2, 1], counts: vec![3, 1] };
    for student in [[1e4, -1e4, 0.0, 3.0], [-1e4, 1e4, -1e4, -1e4], [0.5, 1.0, -2.0, 0.0], [0.0; 4]]
    {
        let log_q = log_softmax(&student, 4, 1.0);
        let p = [0.0, 0.25, 0.75, 0.0];
        let slopes: Vec<f64> = log_q.iter().zip(p).map(|(log_q, p)| log_q.exp() - p).collect();
        for target in &dense {
            // f32 rounds log 0.25, and so what the labels say.
            let tolerance =
                if matches!(target, SoftTarget::Probabilities(_)) { 1e-12 } else { 1e-7 };
            for divergence in of_probabilities() {
                let (value, gradient) = distilled(divergence, &student, target);
                let expected = outcomes_apart(divergence, &log_p, &log_q);
                let what = format!("{divergence:?} of {student:?} on {target:?}");
                let error = (value - expected).abs() / expected.abs().max(1.0);
                assert!(error < tolerance, "{what}: {value} {expected}");
                if OF_DRAWS.contains(&divergence) {
                    for (found, expected) in gradient.iter().zip(&slopes) {
                        assert!((found - expected).abs() < tolerance, "{what}: {gradient:?}");
                    }
                }
            }
        }
        for divergence in OF_DRAWS {
            let (value, gradient) = distilled(divergence, &student, &draws);
            let what = format!("{divergence:?} of {student:?} on draws");
            close(value, outcomes_apart(Divergence::CrossEntropy, &log_p, &log_q), &what);
            all_close(&gradient, &slopes, &what);
        }
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
fn huge_students_on_sparse_labels() {
    // Of these powers of 2 and their logarithms' rounding, scaled away, the outcomes are exact.
    let log_p = [0.5f64.ln(), 0.25f64.ln(), 0.25f64.ln()];
    let of_classes = |log_q: &[f64], classes: &[usize]| {
        let max = classes.iter().map(|&i| log_q[i]).fold(NONE, f64::max);
        max + classes.iter().map(|&i| (log_q[i] - max).exp()).sum::<f64>().ln()
    };
    for logits in [[1e4, -1e4, 0.0, -1e4], [-1e4; 4], [1e4; 4], [-1e4, 1e4, 1e4, 0.0]] {
        let log_q = log_softmax(&logits, 4, 1.0);
        for (ids, others) in [([0, 1], [2, 3]), ([3, 2], [0, 1])] {
            let soft = SoftTarget::TopK {
                k: 2,
                ids: ids.map(|id| id as u32).to_vec(),
                log_probabilities: vec![0.5f32.ln(), 0.25f32.ln()],
                log_tail_mass: vec![0.25f32.ln()],
            };
            let bucketed = [log_q[ids[0]], log_q[ids[1]], of_classes(&log_q, &others)];
            let among = of_classes(&log_q, &ids);
            let chosen = [bucketed[0] - among, bucketed[1] - among];
            let renormalized = [(2f64 / 3.0).ln(), (1f64 / 3.0).ln()];
            for divergence in of_probabilities() {
                for (form, log_p, log_q) in [
                    (TopKForm::TailBucket, &log_p[..], &bucketed[..]),
                    (TopKForm::Renormalized, &renormalized, &chosen),
                ] {
                    let (value, _) = distilled_in(form, divergence, &logits, &soft);
                    let expected = outcomes_apart(divergence, log_p, log_q);
                    let error = (value - expected).abs() / expected.abs().max(1.0);
                    // The labels are f32 logarithms.
                    assert!(error < 1e-7, "{divergence:?} {form:?} {logits:?}: {value} {expected}");
                }
            }
        }
    }
}
