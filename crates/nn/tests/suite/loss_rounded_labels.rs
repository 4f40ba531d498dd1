//! Labels that came in half precision sum to 1 only roughly; a divergence from them is still one:
//! never negative, and 0 where the student says what the labels say.

use half::{bf16, f16};
use stillhouse_nn::{Divergence, LossConfig, Philox, SoftTarget};

use crate::support::{DIVERGENCES, log_softmax, loss_and_gradient, normals, outcomes_apart};

const ROWS: usize = 16;
const K: usize = 2;

/// Labels of one row in one encoding, and the outcomes they speak of.
struct Label {
    target: SoftTarget,
    /// log p of each outcome after rounding, scaled to sum to 1.
    log_p: Vec<f64>,
    /// Logits at T = 1 of a student that says exactly that.
    agreeing: Vec<f64>,
    /// Classes of each outcome.
    classes: Vec<Vec<usize>>,
}

fn log_sum(log: &[f64]) -> f64 {
    log.iter().map(|x| x.exp()).sum::<f64>().ln()
}

fn labels(log_p: &[f64], round: fn(f64) -> f32) -> Vec<Label> {
    let v = log_p.len();
    let normal = |log: Vec<f64>| -> Vec<f64> {
        let norm = log_sum(&log);
        log.into_iter().map(|x| x - norm).collect()
    };
    let each: Vec<Vec<usize>> = (0..v).map(|class| vec![class]).collect();
    let rounded: Vec<f32> = log_p.iter().map(|&x| round(x)).collect();
    let log = normal(rounded.iter().map(|&x| f64::from(x)).collect());
    let mut all = vec![Label {
        target: SoftTarget::LogProbabilities(rounded),
        agreeing: log.clone(),
        log_p: log,
        classes: each.clone(),
    }];
    let rounded: Vec<f32> = log_p.iter().map(|x| round(x.exp())).collect();
    let log = normal(rounded.iter().map(|&x| f64::from(x).ln()).collect());
    all.push(Label {
        target: SoftTarget::Probabilities(rounded),
        agreeing: log.clone(),
        log_p: log,
        classes: each,
    });
    // Classes 1 and 0, which are the largest only by chance.
    let known = [round(log_p[1]), round(log_p[0])];
    let tail = round(log_sum(&log_p[K..]));
    let log = normal([known[0], known[1], tail].map(f64::from).to_vec());
    let share = log[K] - ((v - K) as f64).ln();
    all.push(Label {
        target: SoftTarget::TopK {
            k: K,
            ids: vec![1, 0],
            log_probabilities: known.to_vec(),
            log_tail_mass: vec![tail],
        },
        agreeing: [log[1], log[0]].into_iter().chain(std::iter::repeat_n(share, v - K)).collect(),
        log_p: log,
        classes: vec![vec![1], vec![0], (K..v).collect()],
    });
    all
}

#[test]
fn divergences_stay_divergences() {
    let roundings: [fn(f64) -> f32; 2] =
        [|x| bf16::from_f64(x).to_f32(), |x| f16::from_f64(x).to_f32()];
    for (temperature, v) in [1.0, 4.0, 20.0].into_iter().flat_map(|t| [(t, 3), (t, 10)]) {
        let teacher = normals(&mut Philox::new(24, v as u64), ROWS * v, 2.0);
        for (row, round) in (0..ROWS).flat_map(|row| roundings.map(|round| (row, round))) {
            let exact = log_softmax(&teacher[row * v..][..v], v, temperature);
            for label in labels(&exact, round) {
                for divergence in DIVERGENCES {
                    if matches!(divergence, Divergence::CrossEntropy | Divergence::LogitMse) {
                        continue;
                    }
                    let config =
                        LossConfig { alpha: 1.0, temperature, divergence, ..LossConfig::default() };
                    let what = format!("{divergence:?} on {:?} at {temperature}", label.target);
                    let of = |log_q: &[f64]| {
                        let z: Vec<f64> = log_q.iter().map(|x| temperature * x).collect();
                        let result = loss_and_gradient(&z, 1, None, Some(&label.target), &config);
                        let (parts, gradient) = result.unwrap();
                        (parts.total / (temperature * temperature), gradient)
                    };
                    let (value, gradient) = of(&label.agreeing);
                    assert!((-1e-9..1e-6).contains(&value), "{what}: {value}");
                    // Where p = q, the total variation has a kink instead of a slope.
                    if divergence != Divergence::TotalVariation {
                        assert!(gradient.iter().all(|g| g.abs() < 1e-9), "{what}: {gradient:?}");
                    }
                    // The unrounded teacher is as far away as its distance from the scaled labels.
                    let (value, _) = of(&exact);
                    let of_classes = |classes: &Vec<usize>| {
                        log_sum(&classes.iter().map(|&class| exact[class]).collect::<Vec<_>>())
                    };
                    let log_q: Vec<f64> = label.classes.iter().map(of_classes).collect();
                    let expected = outcomes_apart(divergence, &label.log_p, &log_q);
                    assert!(value >= -1e-9, "{what}: {value}");
                    assert!((value - expected).abs() < 1e-6, "{what}: {value} {expected}");
                }
            }
        }
    }
}
