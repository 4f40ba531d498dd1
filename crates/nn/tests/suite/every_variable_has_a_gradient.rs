//! Every variable of every model receives a gradient that is not zero.

use stillhouse_nn::loss::loss;
use stillhouse_nn::model::Mlp;
use stillhouse_nn::{LossConfig, MlpConfig, Philox};

use crate::support::normals32;

#[test]
fn mlp() {
    for hidden_sizes in [vec![], vec![8], vec![8, 7, 6]] {
        let config = MlpConfig { dropout: 0.1, ..MlpConfig::new(5, hidden_sizes, 4) };
        let mut rng = Philox::new(41, 0);
        let model = Mlp::new(&config, &mut rng).unwrap();
        let input = normals32(&mut rng, 32 * 5);
        let hard: Vec<u32> = (0..32).map(|i| i % 4).collect();
        let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
        let logits = model.forward(&input, 32, &mut rng).unwrap();
        let (scalar, _) = loss(&logits, Some(&hard), None, &config).unwrap();
        let parameters = model.parameters();
        assert!(parameters.is_sorted_by_key(|p| p.name()));
        parameters.iter().for_each(|p| p.clear_gradient());
        let mut store = scalar.backward().unwrap();
        for parameter in parameters {
            assert!(parameter.collect_gradient(&mut store).unwrap(), "{}", parameter.name());
            let gradient = parameter.gradient_values();
            assert!(gradient.iter().any(|&g| g != 0.0), "{}", parameter.name());
            assert!(gradient.iter().all(|g| g.is_finite()), "{}", parameter.name());
        }
    }
}

/// The whole model's gradient against central differences. In f32 the differences are coarse; an
/// error in the chain of layers would show as a wrong sign or a factor.
#[test]
fn the_mlp_gradient_is_that_of_its_loss() {
    let mut rng = Philox::new(42, 0);
    let model = Mlp::new(&MlpConfig::new(6, vec![9, 8], 3), &mut rng).unwrap();
    let input = normals32(&mut rng, 16 * 6);
    let hard: Vec<u32> = (0..16).map(|i| i % 3).collect();
    let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
    let run = || {
        let logits = model.forward(&input, 16, &mut Philox::new(0, 0)).unwrap();
        loss(&logits, Some(&hard), None, &config).unwrap()
    };
    let parameters = model.parameters();
    parameters.iter().for_each(|p| p.clear_gradient());
    let mut store = run().0.backward().unwrap();
    for parameter in parameters {
        assert!(parameter.collect_gradient(&mut store).unwrap());
        let gradient = parameter.gradient_values();
        let values = parameter.values().unwrap();
        for (i, &found) in gradient.iter().enumerate() {
            let at = |step: f32| {
                let mut moved = values.clone();
                moved[i] += step;
                parameter.set(&moved).unwrap();
                run().1.total
            };
            let expected = (at(1e-3) - at(-1e-3)) / 2e-3;
            parameter.set(&values).unwrap();
            let error = (f64::from(found) - expected).abs();
            assert!(error < 2e-3, "{} {i}: {found} {expected}", parameter.name());
        }
    }
}
