//! What tells two models apart.

use sha2::{Digest as _, Sha256};

use super::config::ModelConfig;
use crate::io::Tensors;

/// Separates these hashes from any other use of SHA-256, and from a later definition.
const DOMAIN: &[u8] = b"stillhouse model 1";

/// [`hash_model`] of a configuration's JSON with every field in order of declaration.
pub(super) fn fingerprint(config: &ModelConfig, tensors: &Tensors) -> [u8; 32] {
    // Configurations are numbers, names and lists of them: they always have a JSON form.
    hash_model(&serde_json::to_vec(config).unwrap_or_default(), tensors)
}

/// SHA-256 over a configuration, the element type that the model computes in, and name, shape and
/// bytes of every tensor in order of name. Each part is preceded by its length, so that no two models
/// share one encoding.
pub(crate) fn hash_model(config: &[u8], tensors: &Tensors) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(DOMAIN);
    part(config);
    part(b"F32");
    for (name, (shape, values)) in tensors {
        part(name.as_bytes());
        part(&shape.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect::<Vec<_>>());
        part(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MlpConfig;

    #[test]
    fn every_part_matters() {
        let config = MlpConfig::new(2, vec![], 2);
        let tensors = Tensors::from([
            ("a".to_owned(), (vec![2, 1], vec![1.0, 2.0])),
            ("b".to_owned(), (vec![1], vec![3.0])),
        ]);
        let of = |config: &MlpConfig, tensors: &Tensors| {
            fingerprint(&ModelConfig::Mlp(config.clone()), tensors)
        };
        let change = |change: &dyn Fn(&mut Tensors)| {
            let mut changed = tensors.clone();
            change(&mut changed);
            of(&config, &changed)
        };
        let all = [
            of(&config, &tensors),
            of(&MlpConfig { rescale_factor: 1.0, ..config.clone() }, &tensors),
            change(&|t| t.get_mut("a").unwrap().1[1] = 2.5),
            change(&|t| t.get_mut("a").unwrap().0 = vec![1, 2]),
            change(&|t| drop(t.remove("b"))),
            change(&|t| {
                let b = t.remove("b").unwrap();
                t.insert("c".to_owned(), b);
            }),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(all[0], of(&config, &tensors));
    }
}
