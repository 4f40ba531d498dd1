//! Optimizer steps as PyTorch takes them, in f64, from `tests/fixtures/make_fixtures.py`.

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Fixtures {
    learning_rate: f64,
    start: Vec<f64>,
    gradients: Vec<Vec<f64>>,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    kind: String,
    constants: Value,
    /// After each step.
    values: Vec<Vec<f64>>,
}

/// Compares every run of `kind` with what `take` makes of its constants, the learning rate, the
/// values to change and the gradient of each step: the values after each step, to 1e-12.
pub(super) fn check(
    kind: &str,
    take: impl Fn(&Value, f64, &mut [f64], &[Vec<f64>]) -> Vec<Vec<f64>>,
) {
    let text = include_str!("../../tests/fixtures/optim.json");
    let fixtures: Fixtures = serde_json::from_str(text).unwrap();
    let runs: Vec<&Run> = fixtures.runs.iter().filter(|run| run.kind == kind).collect();
    assert!(runs.len() >= 2);
    for run in runs {
        let mut values = fixtures.start.clone();
        let found = take(&run.constants, fixtures.learning_rate, &mut values, &fixtures.gradients);
        assert_eq!(found.len(), run.values.len());
        for (found, expected) in found.iter().zip(&run.values) {
            assert_eq!(found.len(), expected.len());
        }
        for (found, expected) in found.iter().flatten().zip(run.values.iter().flatten()) {
            assert!((found - expected).abs() < 1e-12, "{:?}: {found} {expected}", run.constants);
        }
    }
}
