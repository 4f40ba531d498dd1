//! T^2 multiplies value and gradient of the distillation term, and of that term only.

use stillhouse_nn::{Divergence, LossConfig, Philox, SoftTarget};

use crate::support::{loss_and_gradient, normals};

const ROWS: usize = 8;
const CLASSES: usize = 10;

fn config(alpha: f64, temperature: f64) -> LossConfig {
    LossConfig { alpha, temperature, divergence: Divergence::ForwardKl, ..LossConfig::default() }
}

/// Small logits with mean 0 in each row: the regime where the gradient no longer depends on T.
fn high_temperature_logits(stream: u64) -> Vec<f64> {
    let mut logits = normals(&mut Philox::new(31, stream), ROWS * CLASSES, 0.5);
    for row in logits.chunks_exact_mut(CLASSES) {
        let mean = row.iter().sum::<f64>() / CLASSES as f64;
        row.iter_mut().for_each(|z| *z -= mean);
    }
    logits
}

fn norm(gradient: &[f64]) -> f64 {
    gradient.iter().map(|g| g * g).sum::<f64>().sqrt()
}

#[test]
fn the_gradient_norm_does_not_fall_with_temperature() {
    let student = high_temperature_logits(0);
    let teacher = high_temperature_logits(1).iter().map(|&z| z as f32).collect();
    let target = SoftTarget::Logits(teacher);
    let at = |temperature| {
        let config = config(1.0, temperature);
        norm(&loss_and_gradient(&student, ROWS, None, Some(&target), &config).unwrap().1)
    };
    let ratio = at(20.0) / at(4.0);
    assert!((0.8..1.2).contains(&ratio), "without T^2 it would be 0.04: {ratio}");
}

#[test]
fn the_limit_of_high_temperature_is_half_the_squared_difference() {
    let student = high_temperature_logits(2);
    let teacher: Vec<f32> = high_temperature_logits(3).iter().map(|&z| z as f32).collect();
    let squares = student.iter().zip(&teacher).map(|(z, &t)| (z - f64::from(t)).powi(2));
    let expected = squares.sum::<f64>() / (2 * CLASSES * ROWS) as f64;
    let target = SoftTarget::Logits(teacher);
    let config = config(1.0, 1e3);
    let (parts, _) = loss_and_gradient(&student, ROWS, None, Some(&target), &config).unwrap();
    assert!((parts.total / expected - 1.0).abs() < 1e-3, "{} {expected}", parts.total);
}

/// Hinton et al. (2015), section 2.1: for logits of mean 0 the gradient of T^2 KL tends to
/// (z - v) / N, that of half the mean squared difference of logits. What is left falls as 1 / T.
#[test]
fn the_gradient_tends_to_that_of_logit_matching() {
    let student = high_temperature_logits(8);
    let teacher: Vec<f32> = high_temperature_logits(9).iter().map(|&z| z as f32).collect();
    let expected: Vec<f64> = student
        .iter()
        .zip(&teacher)
        .map(|(z, &v)| (z - f64::from(v)) / (CLASSES * ROWS) as f64)
        .collect();
    let target = SoftTarget::Logits(teacher);
    let gradient = |divergence, temperature| {
        let config = LossConfig { divergence, ..config(1.0, temperature) };
        loss_and_gradient(&student, ROWS, None, Some(&target), &config).unwrap().1
    };
    let apart = |temperature| {
        let found = gradient(Divergence::ForwardKl, temperature);
        let difference: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
        norm(&difference) / norm(&expected)
    };
    let (near, far) = (apart(1e2), apart(1e4));
    assert!(near < 1e-2 && near > 1e-4, "{near}");
    assert!((near / far / 100.0 - 1.0).abs() < 0.05, "{near} {far}");
    for (found, half) in gradient(Divergence::LogitMse, 7.0).iter().zip(&expected) {
        assert!((found - 2.0 * half).abs() < 1e-15, "{found} {half}");
    }
    // Hinton's cross-entropy has the gradient of the KL.
    let both = [Divergence::ForwardKl, Divergence::CrossEntropy].map(|kind| gradient(kind, 1e3));
    for (kl, ce) in both[0].iter().zip(&both[1]) {
        assert!((kl - ce).abs() < 1e-15, "{kl} {ce}");
    }
}

#[test]
fn the_hard_term_is_not_multiplied() {
    let student = high_temperature_logits(4);
    let hard = Some([0, 1, 2, 3, 4, 5, 6, 7].as_slice());
    let target = SoftTarget::Logits(vec![0.0; ROWS * CLASSES]);
    let of = |alpha, temperature| {
        let config = config(alpha, temperature);
        loss_and_gradient(&student, ROWS, hard, Some(&target), &config).unwrap()
    };
    let (cold, hot) = (of(0.0, 1.0), of(0.0, 20.0));
    assert_eq!(cold.0.total, hot.0.total);
    assert_eq!(cold.1, hot.1);
    // The whole is the weighted sum of its terms, values and gradients.
    let (both, soft) = (of(0.3, 4.0), of(1.0, 4.0));
    assert!((both.0.total - (0.7 * cold.0.total + 0.3 * soft.0.total)).abs() < 1e-12);
    for ((both, hard), soft) in both.1.iter().zip(&cold.1).zip(&soft.1) {
        assert!((both - (0.7 * hard + 0.3 * soft)).abs() < 1e-15);
    }
}

/// As they are: nothing makes them sum to 1.
#[test]
fn weights_of_their_own_stand_in_for_alpha() {
    let student = high_temperature_logits(4);
    let hard = Some([0, 1, 2, 3, 4, 5, 6, 7].as_slice());
    let target = SoftTarget::Logits(vec![0.25; ROWS * CLASSES]);
    let of = |config: LossConfig| {
        loss_and_gradient(&student, ROWS, hard, Some(&target), &config).unwrap()
    };
    let (only_hard, only_soft) = (of(config(0.0, 3.0)), of(config(1.0, 3.0)));
    let weights = [(Some(2.0), Some(0.5)), (None, Some(4.0)), (Some(0.0), None)];
    for (hard_weight, soft_weight) in weights {
        let found = of(LossConfig { hard_weight, soft_weight, ..config(0.25, 3.0) });
        let (hard, soft) = (hard_weight.unwrap_or(0.75), soft_weight.unwrap_or(0.25));
        let expected = hard * only_hard.0.total + soft * only_soft.0.total;
        assert!((found.0.total - expected).abs() < 1e-12, "{hard} {soft}");
        for ((found, by_hard), by_soft) in found.1.iter().zip(&only_hard.1).zip(&only_soft.1) {
            assert!((found - (hard * by_hard + soft * by_soft)).abs() < 1e-14);
        }
    }
}

/// The mean over rows: a batch's loss is the mean of its halves', and so is its gradient.
#[test]
fn losses_are_means_over_rows() {
    let student = high_temperature_logits(5);
    let teacher: Vec<f32> = high_temperature_logits(6).iter().map(|&z| z as f32).collect();
    let of = |from: usize, to: usize| {
        let (from, to) = (from * CLASSES, to * CLASSES);
        let target = SoftTarget::Logits(teacher[from..to].to_vec());
        let rows = (to - from) / CLASSES;
        let config = config(1.0, 2.0);
        loss_and_gradient(&student[from..to], rows, None, Some(&target), &config).unwrap()
    };
    let (whole, first, second) = (of(0, 8), of(0, 4), of(4, 8));
    assert!((whole.0.total - (first.0.total + second.0.total) / 2.0).abs() < 1e-15);
    for (whole, half) in whole.1.iter().zip(first.1.iter().chain(&second.1)) {
        assert!((whole - half / 2.0).abs() < 1e-15);
    }
}

#[test]
fn f32_logits_give_the_gradient_of_f64() {
    use candle_core::{Device, Var};
    let student: Vec<f32> = high_temperature_logits(7).iter().map(|&z| z as f32).collect();
    let target = SoftTarget::Logits(vec![0.5; ROWS * CLASSES]);
    let wide: Vec<f64> = student.iter().map(|&z| f64::from(z)).collect();
    let config = config(1.0, 4.0);
    let (parts, expected) = loss_and_gradient(&wide, ROWS, None, Some(&target), &config).unwrap();
    let z = Var::from_vec(student, (ROWS, CLASSES), &Device::Cpu).unwrap();
    let (scalar, found) =
        stillhouse_nn::loss::loss(z.as_tensor(), None, Some(&target), &config).unwrap();
    assert_eq!(found, parts);
    let store = scalar.backward().unwrap();
    let gradient = store.get(&z).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (found, expected) in gradient.into_iter().zip(expected) {
        assert_eq!(found, expected as f32);
    }
}
