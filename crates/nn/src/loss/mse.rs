//! Mean squared difference of logits.

/// Mean over classes of (u - t)^2 for student logits u and teacher logits t, both divided by T;
/// its derivative by each u in `grad`.
pub(super) fn mean_squared(student: &[f64], teacher: &[f64], grad: &mut [f64]) -> f64 {
    let scale = 1.0 / student.len() as f64;
    let mut value = 0.0;
    for ((u, t), grad) in student.iter().zip(teacher).zip(grad) {
        let difference = u - t;
        value += scale * difference * difference;
        *grad = 2.0 * scale * difference;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_and_slope() {
        let mut grad = [0.0; 2];
        assert_eq!(mean_squared(&[1.0, 3.0], &[2.0, 1.0], &mut grad), 2.5);
        assert_eq!(grad, [-1.0, 2.0]);
    }
}
