//! What can go wrong, in words that name the file, the field, the value and what was expected.

use std::path::PathBuf;

/// A model that cannot be read, written, built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A JSON file that does not parse, or lacks a field.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A `model_type` that this crate has no architecture for.
    #[error("{}: model_type is {found:?}; supported: {supported}", path.display())]
    UnknownModelType {
        /// The configuration file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// Comma-separated names.
        supported: String,
    },
    /// A field of a configuration file outside its range.
    #[error("{}: {field} is {value}; expected {expected}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: String,
    },
    /// A field outside its range.
    #[error("{field} is {value}; expected {expected}")]
    Config {
        /// Name of the field.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: String,
    },
    /// A safetensors file whose header or length is wrong.
    #[error("{}: not a whole safetensors file ({length} bytes): {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the configuration asks for is not in the file.
    #[error("{}: tensor {tensor} is missing; expected shape {expected:?}", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its shape according to the configuration.
        expected: Vec<usize>,
    },
    /// A layer without its weight or bias, or with one of another shape.
    #[error("tensor {tensor} does not fit the model; expected shape {expected:?}")]
    Layer {
        /// Name of the tensor.
        tensor: String,
        /// Its shape according to the configuration.
        expected: Vec<usize>,
    },
    /// A tensor that the configuration knows nothing of.
    #[error("{}: tensor {tensor} is unexpected; expected only: {expected}", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Comma-separated names that belong there.
        expected: String,
    },
    /// A tensor of another shape than the configuration's.
    #[error("{}: tensor {tensor} has shape {found:?}; expected {expected:?}", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape according to the configuration.
        expected: Vec<usize>,
    },
    /// A tensor of an element type that weights do not come in.
    #[error("{}: tensor {tensor} has dtype {found}; expected {expected}", path.display())]
    WrongDtype {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its dtype in the file.
        found: String,
        /// The accepted dtypes.
        expected: String,
    },
    /// A variance below 0.
    #[error("tensor {tensor} holds {value} at element {index}; expected 0 or more")]
    Variance {
        /// Name of the tensor.
        tensor: String,
        /// Index of the element.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A weight that is NaN or infinite.
    #[error("{}: tensor {tensor} holds {value} at element {index}; expected finite values", path.display())]
    NonFiniteWeight {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Row-major index of the element.
        index: usize,
        /// The element.
        value: f32,
    },
    /// Tensors that cannot be written as safetensors.
    #[error("tensors cannot be encoded: {reason}")]
    Encode {
        /// Which one and why.
        reason: String,
    },
    /// Input whose size does not fit the model.
    #[error("{field} has {found} elements; expected {expected}")]
    Size {
        /// What was passed.
        field: &'static str,
        /// How many elements it has.
        found: usize,
        /// How many it should have.
        expected: String,
    },
    /// A hard label outside the classes.
    #[error("hard label of row {row} is {label}; expected 0 to {}", classes - 1)]
    HardLabel {
        /// The row.
        row: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A feature that is NaN or infinite, or becomes so by normalisation.
    #[error("feature {feature} of row {row} is {value} once normalised; expected a finite number")]
    NonFiniteInput {
        /// The row.
        row: usize,
        /// Which of its features.
        feature: usize,
        /// What the model would see.
        value: f32,
    },
    /// The model answered with NaN or infinity.
    #[error("the logits of row {row} are not finite")]
    NonFiniteLogits {
        /// The row.
        row: usize,
    },
    /// A token id that the model has no embedding of.
    #[error("token {position} is {id}; expected 0 to {}", vocabulary - 1)]
    Token {
        /// Index among the packed ids.
        position: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Names the file that a field stands in.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            Self::Config { field, value, expected } => {
                Self::ConfigFile { path: path.to_owned(), field, value, expected }
            }
            other => other,
        }
    }
}

/// A loss that cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// A field outside its range.
    #[error("{field} is {value}; expected {expected}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: f64,
        /// What it may hold.
        expected: &'static str,
    },
    /// The divergence has no meaning on labels in this encoding.
    #[error("divergence {divergence} is not defined on {encoding} labels: {reason}")]
    Unsupported {
        /// Name of the divergence.
        divergence: &'static str,
        /// Name of the encoding.
        encoding: &'static str,
        /// Why, and what to ask for instead.
        reason: &'static str,
    },
    /// The labels that the weights ask for were not given.
    #[error("{missing} labels have the weight {weight}, and the batch has none")]
    MissingLabels {
        /// Their weight.
        weight: f64,
        /// `hard` or `soft`.
        missing: &'static str,
    },
    /// A slice of the wrong length.
    #[error("{field} has {found} elements; expected {expected}")]
    Size {
        /// What was passed.
        field: &'static str,
        /// How many elements it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// A row whose label is not one.
    #[error("{field} of row {row} is {value}; expected {expected}")]
    Row {
        /// What is wrong.
        field: &'static str,
        /// The row.
        row: usize,
        /// What it holds.
        value: f64,
        /// What it may hold.
        expected: String,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// A training step that failed. But for [`Self::NonFiniteUpdate`] it was not taken: the weights are
/// as they were before it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The batch does not fit the model, or the model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The loss could not be computed.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The loss is NaN or infinite.
    #[error("step {step}: the loss is {value}; expected a finite loss")]
    NonFiniteLoss {
        /// Steps done before this one.
        step: u64,
        /// The loss.
        value: f64,
    },
    /// The norm of the gradient is NaN or infinite.
    #[error("step {step}: the gradient's norm is {value}; expected a finite norm")]
    NonFiniteGradient {
        /// Steps done before this one.
        step: u64,
        /// The norm.
        value: f64,
    },
    /// The statistics of the batch overflow in a normalisation.
    #[error(
        "step {step}: mean or variance of {layer} is not finite; expected a finite one: lower the \
         learning rate, or look at image_std"
    )]
    NonFiniteStatistics {
        /// Steps done before this one.
        step: u64,
        /// Name of the first such layer.
        layer: String,
    },
    /// The update overflowed: the trainer can only go on from a saved state.
    #[error(
        "step {step}: the update left NaN or infinity in {parameter} or in what the optimizer \
         remembers of it; go on from a saved state, with a smaller learning rate"
    )]
    NonFiniteUpdate {
        /// Steps done before this one.
        step: u64,
        /// Name of the first such parameter.
        parameter: String,
    },
    /// The graph from a variable to the loss is cut.
    #[error("variable {parameter} received no gradient")]
    NoGradient {
        /// Name of the variable.
        parameter: String,
    },
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(ModelError::Tensor(error))
    }
}

/// A training state that cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file cannot be read, written or understood.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The state was saved by a trainer that was configured otherwise.
    #[error("{}: saved with {field} = {found}; this run has {field} = {expected}", path.display())]
    OtherConfiguration {
        /// The state's `trainer.json`.
        path: PathBuf,
        /// First field that differs, as a dotted path.
        field: String,
        /// Its value in the state.
        found: String,
        /// Its value in this run.
        expected: String,
    },
    /// The files of a state do not belong together.
    #[error("{}: SHA-256 is {found}; trainer.json expects {expected}", path.display())]
    Mixed {
        /// The file that differs.
        path: PathBuf,
        /// Digest of what is there.
        found: String,
        /// Digest that was recorded.
        expected: String,
    },
}
