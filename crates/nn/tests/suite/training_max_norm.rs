//! The bound on the weights into a unit holds after every step, and touches nothing else.

use stillhouse_nn::io::Tensors;
use stillhouse_nn::{Batch, LossConfig, ScheduleConfig, Trainer, TrainerConfig};

use crate::support::{read_model, small_batch, small_trainer};

const MAX: f64 = 0.4;

fn step(trainer: &mut Trainer) -> Tensors {
    let (input, hard, soft) = small_batch(trainer.steps_done(), 8);
    let batch = Batch { input: &input, rows: 8, hard: Some(&hard), soft: Some(&soft) };
    trainer.step(&batch, &LossConfig::default()).unwrap();
    read_model(trainer)
}

/// L2 norm of each row of a weight, in f64.
fn norms(shape: &[usize], weights: &[f32]) -> Vec<f64> {
    let squares = |row: &[f32]| row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
    weights.chunks_exact(shape[1]).map(|row| squares(row).sqrt()).collect()
}

/// A step without the bound, and then its closed form by hand.
#[test]
fn a_step_is_the_free_one_with_its_long_rows_scaled() {
    let free = step(&mut Trainer::new(small_trainer(3)).unwrap());
    let bounded = TrainerConfig { max_norm: Some(MAX), ..small_trainer(3) };
    let bounded = step(&mut Trainer::new(bounded).unwrap());
    let (mut scaled, mut left) = (0, 0);
    for ((name, (shape, free)), (_, bounded)) in free.iter().zip(bounded.values()) {
        if shape.len() == 1 {
            assert_eq!(free, bounded, "{name}");
            continue;
        }
        let rows = free.chunks_exact(shape[1]).zip(bounded.chunks_exact(shape[1]));
        for ((free, bounded), norm) in rows.zip(norms(shape, free)) {
            if norm <= MAX {
                assert_eq!(free, bounded, "{name}");
                left += 1;
                continue;
            }
            for (free, bounded) in free.iter().zip(bounded) {
                let expected = f64::from(*free) * MAX / norm;
                assert!((f64::from(*bounded) - expected).abs() <= 1e-7 * expected.abs(), "{name}");
            }
            scaled += 1;
        }
    }
    assert!(scaled > 0 && left > 0, "{scaled} rows scaled, {left} left");
}

#[test]
fn rows_stay_within_it_where_they_would_grow() {
    let run = |max_norm| {
        let schedule = ScheduleConfig { learning_rate: 0.05, ..ScheduleConfig::default() };
        let config = TrainerConfig { schedule, max_norm, ..small_trainer(3) };
        let mut trainer = Trainer::new(config).unwrap();
        let longest = |tensors: &Tensors| {
            let weights = tensors.values().filter(|(shape, _)| shape.len() == 2);
            weights.flat_map(|(shape, values)| norms(shape, values)).fold(0.0, f64::max)
        };
        (0..10).map(|_| longest(&step(&mut trainer))).collect::<Vec<f64>>()
    };
    assert!(run(None)[9] > 2.0 * MAX);
    for longest in run(Some(MAX)) {
        assert!((longest - MAX).abs() < 1e-6, "{longest}");
    }
}
