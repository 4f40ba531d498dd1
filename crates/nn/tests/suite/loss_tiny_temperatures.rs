//! At temperatures near 0 a tie is still a tie: dividing by T must not drown the log of how many
//! classes share the maximum.

use stillhouse_nn::{Divergence, LossConfig, SoftTarget};

use crate::support::loss_and_gradient;

/// Value over T^2 and gradient over T.
fn of(divergence: Divergence, temperature: f64, z: &[f64], soft: &SoftTarget) -> (f64, Vec<f64>) {
    let config = LossConfig { alpha: 1.0, temperature, divergence, ..LossConfig::default() };
    let (parts, gradient) = loss_and_gradient(z, 1, None, Some(soft), &config).unwrap();
    let value = parts.total / (temperature * temperature);
    (value, gradient.into_iter().map(|g| g / temperature).collect())
}

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (x, y) in found.iter().zip(expected) {
        assert!((x - y).abs() < 1e-12, "{found:?} {expected:?}");
    }
}

#[test]
fn ties_at_the_top_share_the_mass() {
    let student = [1e4, -1e4, 1e4];
    let half = 0.5f32;
    let targets = [
        SoftTarget::Probabilities(vec![half, 0.0, half]),
        SoftTarget::Logits(vec![1e4, -1e4, 1e4]),
        SoftTarget::TopK {
            k: 2,
            ids: vec![2, 0],
            log_probabilities: vec![half.ln(); 2],
            log_tail_mass: vec![f32::NEG_INFINITY],
        },
        SoftTarget::Sampled { draws: 2, distinct: vec![2], ids: vec![2, 0], counts: vec![1, 1] },
    ];
    for target in &targets {
        let (value, gradient) = of(Divergence::CrossEntropy, 1e-13, &student, target);
        close(&[value], &[2f64.ln()]);
        close(&gradient, &[0.0; 3]);
    }
    for target in &targets[..3] {
        let (value, gradient) = of(Divergence::ForwardKl, 1e-13, &student, target);
        close(&[value], &[0.0]);
        close(&gradient, &[0.0; 3]);
    }
}

#[test]
fn ties_in_the_tail_share_its_slope() {
    let target = SoftTarget::TopK {
        k: 1,
        ids: vec![0],
        log_probabilities: vec![0.5f32.ln()],
        log_tail_mass: vec![0.5f32.ln()],
    };
    let (_, gradient) = of(Divergence::ForwardKl, 1e-13, &[1e4, -1e4, -1e4], &target);
    close(&gradient, &[0.5, -0.25, -0.25]);
}

/// z / T is beyond f64; the difference of logits decides all the same.
#[test]
fn quotients_may_overflow() {
    for target in [SoftTarget::Probabilities(vec![1.0, 0.0]), SoftTarget::Logits(vec![1e4, -1e4])] {
        let config = LossConfig { alpha: 1.0, temperature: 1e-305, ..LossConfig::default() };
        let (parts, gradient) =
            loss_and_gradient(&[1e4, -1e4], 1, None, Some(&target), &config).unwrap();
        assert_eq!((parts.total, gradient), (0.0, vec![0.0; 2]));
    }
}
