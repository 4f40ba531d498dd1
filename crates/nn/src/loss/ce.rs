//! Cross-entropy with the hard label.

use super::outcomes::log_softmax;

/// -log q\[label\] of one row of logits (T = 1), and its derivative by each logit.
pub(crate) fn hard(logits: &[f64], label: usize) -> (f64, Vec<f64>) {
    let log_q = log_softmax(logits);
    let mut grad: Vec<f64> = log_q.iter().map(|log_q| log_q.exp()).collect();
    grad[label] -= 1.0;
    (-log_q[label], grad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_classes_in_closed_form() {
        let (value, grad) = hard(&[2.0, 0.5], 1);
        assert!((value - 1.5f64.exp().ln_1p()).abs() < 1e-15);
        let q = 1.0 / (1.0 + (-1.5f64).exp());
        assert!((grad[0] - q).abs() < 1e-15 && (grad[1] + q).abs() < 1e-15);
    }

    #[test]
    fn extremes_are_exact() {
        assert_eq!(hard(&[1e4, -1e4], 1), (2e4, vec![1.0, -1.0]));
        assert_eq!(hard(&[1e4, -1e4], 0), (0.0, vec![0.0, 0.0]));
    }
}
