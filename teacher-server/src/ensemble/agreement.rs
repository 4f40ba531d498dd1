//! What models must have in common to answer as one teacher.

use std::{fmt::Debug, path::Path};

use stillhouse_nn::{AnyConfig, TokenizerInfo};
use stillhouse_runtime::config::ConfigError;

use crate::model::AnyModel;

/// What models that answer as one must share: what a row of input is, and what is said of it.
#[derive(Clone, Copy)]
pub(crate) struct Signature {
    classes: usize,
    input: SignatureInput,
}

#[derive(Clone, Copy)]
enum SignatureInput {
    Features {
        width: usize,
        /// None takes any features, and so those of the other members.
        image_shape: Option<[usize; 3]>,
        rescale_factor: f64,
    },
    Tokens {
        language_model: bool,
        /// None has been refused where the model was loaded.
        tokenizer: Option<TokenizerInfo>,
    },
}

impl SignatureInput {
    fn kind(&self) -> &'static str {
        match self {
            Self::Features { .. } => "features",
            Self::Tokens { language_model: false, .. } => "token sequences",
            Self::Tokens { language_model: true, .. } => "tokens of a language model",
        }
    }
}

impl Signature {
    pub(super) fn of(model: &AnyModel) -> Self {
        let classes = model.classes();
        match model {
            AnyModel::Features(model) => {
                let (width, image_shape) = (model.input_width(), model.image_shape());
                let rescale_factor = model.rescale_factor();
                let input = SignatureInput::Features { width, image_shape, rescale_factor };
                Self { classes, input }
            }
            AnyModel::Text(model) => {
                let language_model = model.config().is_language_model();
                let tokenizer = model.tokenizer();
                Self { classes, input: SignatureInput::Tokens { language_model, tokenizer } }
            }
        }
    }

    /// Of a model that is not loaded yet.
    pub(crate) fn expected(config: &AnyConfig, tokenizer: Option<TokenizerInfo>) -> Self {
        match config {
            AnyConfig::Features(config) => Self {
                classes: config.classes(),
                input: SignatureInput::Features {
                    width: config.input_width(),
                    image_shape: config.image_shape(),
                    rescale_factor: config.rescale_factor(),
                },
            },
            AnyConfig::Text(config) => {
                let language_model = config.is_language_model();
                let classes = match tokenizer.filter(|_| language_model) {
                    // Rows beyond the tokenizer's are no words.
                    Some(tokenizer) => tokenizer.size.min(config.classes()),
                    None => config.classes(),
                };
                Self { classes, input: SignatureInput::Tokens { language_model, tokenizer } }
            }
        }
    }
}

/// Refuses members that do not agree.
pub(crate) fn agree<'a>(
    members: impl Iterator<Item = (&'a Path, Signature)>,
) -> Result<(), ConfigError> {
    fn same<T: PartialEq + Debug>(
        what: &str,
        (first, expected): (&Path, &T),
        (other, found): (&Path, &T),
    ) -> Result<(), ConfigError> {
        if found == expected {
            return Ok(());
        }
        let (first, other) = (first.display(), other.display());
        Err(wrong(format!(
            "{what} is {expected:?} in {first} and {found:?} in {other}; models that answer as one \
             teacher must agree"
        )))
    }
    let mut reference: Option<(&Path, Signature)> = None;
    let mut images: Option<(&Path, [usize; 3])> = None;
    for (folder, found) in members {
        let (first, expected) = *reference.get_or_insert((folder, found));
        same("input", (first, &expected.input.kind()), (folder, &found.input.kind()))?;
        match (expected.input, found.input) {
            (
                SignatureInput::Features { width, rescale_factor, .. },
                SignatureInput::Features {
                    width: own_width,
                    image_shape,
                    rescale_factor: own_factor,
                },
            ) => {
                same("input width", (first, &width), (folder, &own_width))?;
                same("number of classes", (first, &expected.classes), (folder, &found.classes))?;
                if let Some(shape) = &image_shape {
                    let (first, expected) = images.get_or_insert((folder, *shape));
                    same("image shape", (first, &*expected), (folder, shape))?;
                }
                same("rescale factor", (first, &rescale_factor), (folder, &own_factor))?;
            }
            (
                SignatureInput::Tokens { tokenizer, .. },
                SignatureInput::Tokens { tokenizer: own, .. },
            ) => {
                same("number of classes", (first, &expected.classes), (folder, &found.classes))?;
                if tokenizer != own {
                    let (first, folder) = (first.display(), folder.display());
                    return Err(wrong(format!(
                        "tokenizer.json of {first} and of {folder} differ; models that answer as one \
                         teacher must agree"
                    )));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn wrong(reason: String) -> ConfigError {
    ConfigError::Value { key: "model".to_owned(), reason }
}
