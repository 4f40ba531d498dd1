//! Models, losses and optimizers for knowledge distillation: what the teacher server answers with
//! and what the student worker trains.
//!
//! | module | holds |
//! |---|---|
//! | [`rng`] | Philox 4x32-10, a counter-based generator that can be sought |
//! | [`layers`] | differentiable layers on candle's autograd, with their own fused backward |
//! | [`model`] | architectures, their `config.json`, and [`Classifier`] for inference |
//! | [`transformer`] | language models and text classifiers, from Hugging Face directories |
//! | [`softmax`] | log-probabilities in f64, the same bits on every machine |
//! | [`loss`] | every distillation loss on dense and on sparse labels |
//! | [`optim`] | SGD and AdamW in place, learning-rate schedules, gradient clipping |
//! | [`trainer`] | one optimisation step at a time, with exact save and resume |
//! | [`io`] | checked safetensors, atomic files |
//!
//! Everything at this boundary is plain slices of `f32`, row-major.
//!
//! ```
//! use stillhouse_nn::{Batch, LossConfig, MlpConfig, ModelConfig, SoftTarget, Trainer, TrainerConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = ModelConfig::Mlp(MlpConfig::new(4, vec![8], 3));
//! let mut trainer = Trainer::new(TrainerConfig::new(model, 10))?;
//! let soft = SoftTarget::Probabilities(vec![0.7, 0.2, 0.1]);
//! let batch = Batch { input: &[0.1, 0.9, 0.3, 0.0], rows: 1, hard: Some(&[0]), soft: Some(&soft) };
//! let report = trainer.step(&batch, &LossConfig::default())?;
//! assert!(report.loss.is_finite());
//! # Ok(())
//! # }
//! ```

pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod io;
mod kernel;
pub mod layers;
pub mod loss;
pub mod model;
pub mod optim;
pub mod rng;
pub mod softmax;
pub mod trainer;
pub mod transformer;

pub use error::{LossError, ModelError, StateError, TrainError};
pub use kernel::precision::Precision;
pub use loss::{Divergence, LossConfig, LossSums, SoftLabels, SoftTarget, TopKForm};
pub use model::{
    Activation, AnyConfig, Classifier, Head, Inference, LeNetConfig, MlpConfig, ModelConfig,
    PackedHead, ResNetConfig,
};
pub use optim::{OptimizerConfig, ScheduleConfig, ScheduleKind};
pub use rng::Philox;
pub use trainer::{
    Agreement, Batch, Evaluation, StepReport, TextBatch, TextTrainer, TextTrainerConfig, Trainer,
    TrainerConfig, UpdateReport, evaluate_logits,
};
pub use transformer::{Sampling, TextModel, TokenBatch, TokenizerInfo, TransformerConfig};
