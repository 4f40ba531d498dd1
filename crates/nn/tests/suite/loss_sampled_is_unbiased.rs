//! The expectation of the loss on samples, over every outcome of the draws, is the cross-entropy
//! with the teacher; so is that of its gradient.

use stillhouse_nn::{Divergence, LossConfig, SoftTarget};

use crate::support::{log_softmax, loss_and_gradient};

const CLASSES: u32 = 3;
const DRAWS: u32 = 3;
const T: f64 = 2.0;

fn of(divergence: Divergence, target: &SoftTarget) -> (f64, Vec<f64>) {
    let student = [0.3, -1.2, 2.0];
    let config = LossConfig { alpha: 1.0, temperature: T, divergence, ..LossConfig::default() };
    let (parts, gradient) = loss_and_gradient(&student, 1, None, Some(target), &config).unwrap();
    (parts.total, gradient)
}

#[test]
fn enumerated() {
    // Probabilities that f32 holds exactly.
    let p = [0.5f32, 0.125, 0.375];
    for divergence in [Divergence::CrossEntropy, Divergence::ForwardKl] {
        let mut expectation = (0.0, vec![0.0; CLASSES as usize]);
        for outcome in 0..CLASSES.pow(DRAWS) {
            let draws: Vec<u32> = (0..DRAWS).map(|i| outcome / CLASSES.pow(i) % CLASSES).collect();
            let probability: f64 = draws.iter().map(|&id| f64::from(p[id as usize])).product();
            let count = |id: u32| draws.iter().filter(|&&drawn| drawn == id).count() as u32;
            let ids: Vec<u32> = (0..CLASSES).filter(|&id| count(id) > 0).collect();
            let counts = ids.iter().map(|&id| count(id)).collect();
            let distinct = vec![ids.len() as u32];
            let (value, gradient) =
                of(divergence, &SoftTarget::Sampled { draws: DRAWS, distinct, ids, counts });
            expectation.0 += probability * value;
            for (sum, g) in expectation.1.iter_mut().zip(gradient) {
                *sum += probability * g;
            }
        }
        let dense = SoftTarget::Probabilities(p.to_vec());
        let (value, gradient) = of(Divergence::CrossEntropy, &dense);
        assert!((expectation.0 - value).abs() < 1e-13, "{} {value}", expectation.0);
        for (sum, g) in expectation.1.iter().zip(&gradient) {
            assert!((sum - g).abs() < 1e-13);
        }
        // Of the KL it lacks T^2 times the teacher's negative entropy, and nothing of the gradient.
        let (kl, kl_gradient) = of(Divergence::ForwardKl, &dense);
        let entropy: f64 = p.iter().map(|&p| -f64::from(p) * f64::from(p).ln()).sum();
        assert!((expectation.0 - T * T * entropy - kl).abs() < 1e-12);
        assert_eq!(gradient, kl_gradient);
    }
}

/// All classes in proportion are the dense label.
#[test]
fn counts_in_proportion_are_the_dense_label() {
    let counts = vec![4, 1, 3];
    let sampled = SoftTarget::Sampled { draws: 8, distinct: vec![3], ids: vec![0, 1, 2], counts };
    let (value, _) = of(Divergence::CrossEntropy, &sampled);
    let log_q = log_softmax(&[0.3, -1.2, 2.0], 3, T);
    let expected = -T * T * (0.5 * log_q[0] + 0.125 * log_q[1] + 0.375 * log_q[2]);
    assert!((value - expected).abs() < 1e-13);
}
