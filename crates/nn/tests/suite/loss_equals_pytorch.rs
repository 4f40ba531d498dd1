//! Every loss and its gradient equal PyTorch's, in f64, to 1e-6 relative. The fixtures are made by
//! `tests/fixtures/make_fixtures.py`, which records PyTorch's version in them.

use serde::Deserialize;
use stillhouse_nn::{LossConfig, SoftTarget};

use crate::support::loss_and_gradient;

#[derive(Deserialize)]
struct Fixtures {
    rows: usize,
    logits: Vec<f64>,
    hard: Vec<u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    config: LossConfig,
    soft: Soft,
    loss: f64,
    hard_loss: f64,
    soft_loss: f64,
    gradient: Vec<f64>,
}

/// A missing number is minus infinity.
#[derive(Deserialize)]
#[serde(tag = "encoding", rename_all = "snake_case")]
enum Soft {
    LogProbabilities {
        values: Vec<Option<f64>>,
    },
    Probabilities {
        values: Vec<Option<f64>>,
    },
    Logits {
        values: Vec<Option<f64>>,
    },
    TopK {
        k: usize,
        ids: Vec<u32>,
        log_probabilities: Vec<Option<f64>>,
        log_tail_mass: Vec<Option<f64>>,
    },
    Sampled {
        draws: u32,
        distinct: Vec<u32>,
        ids: Vec<u32>,
        counts: Vec<u32>,
    },
}

fn narrow(values: Vec<Option<f64>>) -> Vec<f32> {
    values.into_iter().map(|x| x.unwrap_or(f64::NEG_INFINITY) as f32).collect()
}

impl From<Soft> for SoftTarget {
    fn from(soft: Soft) -> Self {
        match soft {
            Soft::LogProbabilities { values } => Self::LogProbabilities(narrow(values)),
            Soft::Probabilities { values } => Self::Probabilities(narrow(values)),
            Soft::Logits { values } => Self::Logits(narrow(values)),
            Soft::TopK { k, ids, log_probabilities, log_tail_mass } => Self::TopK {
                k,
                ids,
                log_probabilities: narrow(log_probabilities),
                log_tail_mass: narrow(log_tail_mass),
            },
            Soft::Sampled { draws, distinct, ids, counts } => {
                Self::Sampled { draws, distinct, ids, counts }
            }
        }
    }
}

/// No floor under the tolerance: where PyTorch says 0, so does the crate.
#[track_caller]
fn close(found: f64, expected: f64, what: &str) {
    let tolerance = 1e-6 * expected.abs();
    assert!((found - expected).abs() <= tolerance, "{what}: {found}, PyTorch {expected}");
}

#[test]
fn value_and_gradient() {
    let fixtures: Fixtures = serde_json::from_str(include_str!("../fixtures/losses.json")).unwrap();
    assert_eq!(fixtures.cases.len(), 2 * (6 * 3 + 4 + 4));
    for case in fixtures.cases {
        let soft = SoftTarget::from(case.soft);
        let what = format!("{:?} on {}", case.config, soft.encoding());
        let (parts, gradient) = loss_and_gradient(
            &fixtures.logits,
            fixtures.rows,
            Some(&fixtures.hard),
            Some(&soft),
            &case.config,
        )
        .unwrap();
        close(parts.total, case.loss, &what);
        close(parts.hard.unwrap(), case.hard_loss, &what);
        close(parts.soft.unwrap(), case.soft_loss, &what);
        assert_eq!(gradient.len(), case.gradient.len(), "{what}");
        for (found, expected) in gradient.into_iter().zip(case.gradient) {
            close(found, expected, &what);
        }
    }
}
