//! What several files need.

use candle_core::{Device, Var};
use stillhouse_nn::io::{Tensors, read_tensors};
use stillhouse_nn::loss::{LossParts, loss};
use stillhouse_nn::model::WEIGHTS_FILE;
use stillhouse_nn::{
    Divergence, LossConfig, LossError, MlpConfig, ModelConfig, Philox, ScheduleConfig, SoftTarget,
    Trainer, TrainerConfig,
};

/// Loss of f64 logits and its gradient by each.
pub(crate) fn loss_and_gradient(
    logits: &[f64],
    rows: usize,
    hard: Option<&[u32]>,
    soft: Option<&SoftTarget>,
    config: &LossConfig,
) -> Result<(LossParts, Vec<f64>), LossError> {
    let shape = (rows, logits.len() / rows);
    let z = Var::from_vec(logits.to_vec(), shape, &Device::Cpu).unwrap();
    let (scalar, parts) = loss(z.as_tensor(), hard, soft, config)?;
    assert_eq!(scalar.to_scalar::<f64>().unwrap(), parts.total);
    let store = scalar.backward().unwrap();
    let gradient = store.get(&z).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    Ok((parts, gradient))
}

/// Every divergence, those with a parameter at a typical value.
pub(crate) const DIVERGENCES: [Divergence; 7] = [
    Divergence::ForwardKl,
    Divergence::CrossEntropy,
    Divergence::ReverseKl,
    Divergence::JensenShannon { beta: 0.4 },
    Divergence::SkewKl { lambda: 0.1 },
    Divergence::TotalVariation,
    Divergence::LogitMse,
];

/// D(p, q) from its definition, outcome by outcome, in f64. In KL(q || p) a p of 0 counts as 2^-149,
/// the smallest f32.
pub(crate) fn outcomes_apart(divergence: Divergence, log_p: &[f64], log_q: &[f64]) -> f64 {
    assert_eq!(log_p.len(), log_q.len());
    let times = |mass: f64, log: f64| if mass == 0.0 { 0.0 } else { mass * log };
    let term = |(&log_p, &log_q): (&f64, &f64)| {
        let (p, q) = (log_p.exp(), log_q.exp());
        match divergence {
            Divergence::ForwardKl => times(p, log_p - log_q),
            Divergence::CrossEntropy => times(p, -log_q),
            Divergence::ReverseKl if p == 0.0 && log_p == f64::NEG_INFINITY => {
                times(q, log_q + 149.0 * 2f64.ln())
            }
            Divergence::ReverseKl => times(q, log_q - log_p),
            Divergence::JensenShannon { beta } => {
                let log_m = (beta * p + (1.0 - beta) * q).ln();
                beta * times(p, log_p - log_m) + (1.0 - beta) * times(q, log_q - log_m)
            }
            Divergence::SkewKl { lambda } => {
                times(p, log_p - (lambda * p + (1.0 - lambda) * q).ln())
            }
            Divergence::TotalVariation => 0.5 * (p - q).abs(),
            // Not a function of probabilities.
            Divergence::LogitMse => f64::NAN,
        }
    };
    log_p.iter().zip(log_q).map(term).sum()
}

/// `count` normal numbers times `scale`.
pub(crate) fn normals(rng: &mut Philox, count: usize, scale: f64) -> Vec<f64> {
    (0..count).map(|_| scale * rng.normal()).collect()
}

/// The same in f32.
pub(crate) fn normals32(rng: &mut Philox, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.normal() as f32).collect()
}

/// log softmax of each row of `logits / temperature`.
pub(crate) fn log_softmax(logits: &[f64], classes: usize, temperature: f64) -> Vec<f64> {
    let row = |z: &[f64]| {
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().map(|z| ((z - max) / temperature).exp()).sum();
        z.iter().map(|z| (z - max) / temperature - sum.ln()).collect::<Vec<f64>>()
    };
    logits.chunks_exact(classes).flat_map(row).collect()
}

/// Top-k labels of rows of log-probabilities.
pub(crate) fn top_k(log_p: &[f64], classes: usize, k: usize) -> SoftTarget {
    known(log_p, classes, k, |a, b| b.total_cmp(&a))
}

/// Labels of the `k` least probable classes of each row, as a client may name any: nearly all mass
/// is in the tail.
pub(crate) fn bottom_k(log_p: &[f64], classes: usize, k: usize) -> SoftTarget {
    known(log_p, classes, k, |a, b| a.total_cmp(&b))
}

fn known(
    log_p: &[f64],
    classes: usize,
    k: usize,
    compare: fn(f64, f64) -> std::cmp::Ordering,
) -> SoftTarget {
    let (mut ids, mut known, mut tails) = (vec![], vec![], vec![]);
    for row in log_p.chunks_exact(classes) {
        let mut order: Vec<usize> = (0..classes).collect();
        order.sort_by(|&a, &b| compare(row[a], row[b]));
        ids.extend(order[..k].iter().map(|&id| id as u32));
        known.extend(order[..k].iter().map(|&id| row[id] as f32));
        tails.push(order[k..].iter().map(|&id| row[id].exp()).sum::<f64>().ln() as f32);
    }
    SoftTarget::TopK { k, ids, log_probabilities: known, log_tail_mass: tails }
}

/// A small perceptron with dropout in both places.
pub(crate) fn small_trainer(seed: u64) -> TrainerConfig {
    let model = ModelConfig::Mlp(MlpConfig {
        dropout: 0.2,
        input_dropout: 0.1,
        image_mean: 0.1,
        image_std: 0.5,
        ..MlpConfig::new(12, vec![24, 16], 5)
    });
    TrainerConfig {
        schedule: ScheduleConfig { learning_rate: 1e-2, ..ScheduleConfig::default() },
        clip_norm: Some(1.0),
        seed,
        ..TrainerConfig::new(model, 20)
    }
}

/// A batch for [`small_trainer`]: input, hard labels, soft labels.
pub(crate) fn small_batch(step: u64, rows: usize) -> (Vec<f32>, Vec<u32>, SoftTarget) {
    let mut rng = Philox::new(99, 100 + step);
    let input = normals32(&mut rng, rows * 12);
    let hard = (0..rows).map(|_| rng.below(5)).collect();
    let soft = SoftTarget::Logits(normals32(&mut rng, rows * 5));
    (input, hard, soft)
}

/// Every tensor of a trainer's model.
pub(crate) fn read_model(trainer: &Trainer) -> Tensors {
    let dir = tempfile::tempdir().unwrap();
    trainer.save_model(dir.path()).unwrap();
    let config = ModelConfig::load(dir.path()).unwrap();
    read_tensors(&dir.path().join(WEIGHTS_FILE), &config.tensors()).unwrap()
}
