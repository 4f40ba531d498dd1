//! Behaviour of the crate through its public face, one file each.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

mod batch_invariance;
mod every_variable_has_a_gradient;
mod image_models;
mod loss_bad_labels;
mod loss_equals_pytorch;
mod loss_extremes;
mod loss_gradients;
mod loss_rounded_labels;
mod loss_sampled_is_unbiased;
mod loss_temperature;
mod loss_tiny_temperatures;
mod model_directory;
mod pretrained_resnets;
mod stories;
mod text_models_equal_transformers;
mod text_training;
mod thread_count;
mod training_is_deterministic;
mod training_learns;
mod training_max_norm;
mod training_refuses;
mod training_resumes;
