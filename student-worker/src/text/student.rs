//! The model to train: from scratch, from a folder, or from some layers of one.

use std::path::{Path, PathBuf};

use stillhouse_nn::{ModelError, TextTrainer, TextTrainerConfig, TransformerConfig};

use super::recipe::{StudentSection, TextRecipe};

/// Where the tokenizer lies if the recipe does not say.
pub(super) fn folder(student: &StudentSection) -> Option<&Path> {
    student.model.as_deref().or(student.layers_of.as_deref())
}

/// The student's architecture: of a classifier where documents are classified, of a language model
/// elsewhere.
pub(super) fn config(recipe: &TextRecipe) -> Result<TransformerConfig, ModelError> {
    let student = &recipe.student;
    let config = match (&student.config, &student.model, &student.layers_of) {
        (Some(file), ..) => {
            let text = std::fs::read_to_string(file)
                .map_err(|source| ModelError::Io { path: file.clone(), source })?;
            TransformerConfig::parse(file, &text)?
        }
        (_, Some(folder), _) => TransformerConfig::load(folder)?,
        (_, _, Some(folder)) => {
            TransformerConfig::load(folder)?.with_layers(&student.keep_layers)?
        }
        // The recipe has been checked.
        (None, None, None) => TransformerConfig::from_json(serde_json::Map::new())?,
    };
    let classifies = recipe.data.classifies();
    if config.is_language_model() == classifies {
        let found = config.json().get("model_type").map_or_else(String::new, ToString::to_string);
        let expected = match classifies {
            true => "that of a classifier of sequences, beside data.label_field",
            false => "that of a language model, or data.label_field beside it, for a classifier",
        };
        let (field, expected) = ("student: model_type".to_owned(), expected.to_owned());
        return Err(ModelError::Config { field, value: found, expected });
    }
    Ok(config)
}

/// Refuses a student without room for its tokenizer's words, or for the sequences.
pub(super) fn check_sizes(
    recipe: &TextRecipe,
    config: &TransformerConfig,
    words: usize,
) -> Result<(), ModelError> {
    let refuse = |field: &str, value: usize, expected: String| {
        Err(ModelError::Config { field: field.to_owned(), value: value.to_string(), expected })
    };
    let (rows, length, most) =
        (config.vocabulary(), recipe.data.sequence_length, config.max_length());
    if rows < words {
        let expected = format!("{words} or more, the words of the tokenizer");
        return refuse("student: vocab_size", rows, expected);
    }
    if length > most {
        let expected = format!("2 to {most}, the student's max_position_embeddings");
        return refuse("data.sequence_length", length, expected);
    }
    Ok(())
}

/// What the trainer of a recipe does.
pub(super) fn trainer_config(
    recipe: &TextRecipe,
    model: TransformerConfig,
    words: usize,
) -> TextTrainerConfig {
    TextTrainerConfig {
        vocabulary: model.is_language_model().then_some(words),
        model,
        optimizer: recipe.optimizer,
        decay_vectors: recipe.train.decay_vectors,
        schedule: recipe.schedule,
        total_steps: recipe.train.steps,
        clip_norm: recipe.train.clip_norm(),
        seed: recipe.seed,
        precision: recipe.train.precision,
        checkpoint_activations: recipe.train.checkpoint_activations,
    }
}

/// A trainer before its first step.
pub(super) fn trainer(
    student: &StudentSection,
    config: TextTrainerConfig,
) -> Result<TextTrainer, ModelError> {
    let mut trainer = TextTrainer::new(config)?;
    if let Some(folder) = &student.model {
        trainer.load_weights(folder)?;
    }
    if let Some(folder) = &student.layers_of {
        trainer.load_layers(folder, &student.keep_layers)?;
    }
    Ok(trainer)
}

/// Files of a tokenizer that belong beside a model, in the folder of its `tokenizer.json`.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// Copies the tokenizer into a model's folder: `tokenizer.json`, and what lies beside it.
pub(super) fn copy_tokenizer(tokenizer: &Path, to: &Path) -> Result<(), ModelError> {
    let copy = |from: PathBuf, name: &str| match std::fs::copy(&from, to.join(name)) {
        Ok(_) => Ok(()),
        Err(source) => Err(ModelError::Io { path: from, source }),
    };
    copy(tokenizer.to_owned(), stillhouse_nn::transformer::TOKENIZER_FILE)?;
    let folder = tokenizer.parent().unwrap_or(Path::new("."));
    for name in TOKENIZER_FILES {
        let from = folder.join(name);
        if from.is_file() {
            copy(from, name)?;
        }
    }
    Ok(())
}
