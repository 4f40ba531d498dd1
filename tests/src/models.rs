//! Small teachers, made on the spot.

use std::path::Path;

use stillhouse_nn::{MlpConfig, ModelConfig, Trainer, TrainerConfig};

/// Writes an MLP with seeded random weights into a folder.
pub fn write_mlp(folder: &Path, input: usize, hidden: &[usize], classes: usize, seed: u64) {
    write(folder, ModelConfig::Mlp(MlpConfig::new(input, hidden.to_vec(), classes)), seed);
}

/// Writes a model with seeded random weights into a folder.
pub fn write(folder: &Path, model: ModelConfig, seed: u64) {
    let config = TrainerConfig { seed, ..TrainerConfig::new(model, 1) };
    let trainer = Trainer::new(config).expect("a valid model");
    trainer.save_model(folder).expect("it can be written");
}
