//! Why a run did not end with a trained student, and with which exit code.

use std::path::PathBuf;

use stillhouse_nn::{ModelError, StateError, TrainError};
use stillhouse_runtime::exit;
use teacher_server::StartError;

use crate::{
    capture::CaptureError,
    data::DataError,
    label_client::{ClientError, TargetError},
    run_folder::RunError,
    text::corpus::TextError,
};

/// Why a run did not end with a trained student.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The text cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Labels do not come.
    #[error(transparent)]
    Labels(#[from] ClientError),
    /// Labels cannot be trained on.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The embedded teacher cannot be started.
    #[error("teacher: {0}")]
    Teacher(#[from] StartError),
    /// The run's folder cannot be used.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Labels cannot be captured, or those that were cannot be trained on.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A value of the recipe does not go with the data's size.
    #[error(transparent)]
    Recipe(ModelError),
    /// The model that is to be tested cannot be read.
    #[error(transparent)]
    Load(ModelError),
    /// The student cannot be built, tested or saved.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A step could not be taken.
    #[error(transparent)]
    Step(#[from] TrainError),
    /// A checkpoint's state cannot be saved or restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The training thread ended without a result.
    #[error("the training thread failed: {0}")]
    Thread(#[from] tokio::task::JoinError),
    /// A quickstart's run ended without a test.
    #[error("{name}: the student was not tested")]
    Untested {
        /// The run's name.
        name: String,
    },
    /// A run of a sweep failed.
    #[error("{name}: {source}")]
    OfSweep {
        /// The run's name.
        name: String,
        /// Why.
        source: Box<Self>,
    },
    /// The run stopped on an error that may pass, after a checkpoint.
    #[error(transparent)]
    Suspended(Box<Interrupted>),
    /// The run ended on an error about its labels that another try would not mend, after a
    /// checkpoint.
    #[error(transparent)]
    Broken(Box<Interrupted>),
}

/// A run that ended early, and what it left.
#[derive(Debug, thiserror::Error)]
#[error("{source}; checkpoint at step {step}: {}", checkpoint.display())]
pub struct Interrupted {
    /// Steps done.
    pub step: u64,
    /// The checkpoint's folder.
    pub checkpoint: PathBuf,
    /// What stopped the run.
    pub source: Error,
}

impl From<Interrupted> for Error {
    /// One that may pass, where its source may.
    fn from(interrupted: Interrupted) -> Self {
        let ended = Box::new(interrupted);
        match ended.source {
            Self::Labels(ClientError::Unreachable { .. } | ClientError::Lost { .. }) => {
                Self::Suspended(ended)
            }
            _ => Self::Broken(ended),
        }
    }
}

impl Error {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Labels(ClientError::Unreachable { .. } | ClientError::Lost { .. })
            | Self::Suspended(_)
            | Self::Run(RunError::Busy { .. })
            | Self::Capture(CaptureError::Busy { .. }) => exit::TEMPORARY,
            Self::Capture(CaptureError::Io(_) | CaptureError::Unstorable { .. }) => exit::FAILED,
            Self::Broken(interrupted) => interrupted.source.exit_code(),
            Self::OfSweep { source, .. } => source.exit_code(),
            Self::Data(_)
            | Self::Text(_)
            | Self::Capture(_)
            | Self::Recipe(_)
            | Self::Load(_)
            | Self::Labels(
                ClientError::Address { .. }
                | ClientError::Credentials { .. }
                | ClientError::Plaintext { .. }
                | ClientError::Unsuitable { .. },
            )
            | Self::Teacher(StartError::Settings(_) | StartError::Model { .. })
            | Self::Run(
                RunError::Occupied { .. }
                | RunError::OtherRecipe { .. }
                | RunError::Unreadable { .. }
                | RunError::Identity { .. },
            ) => exit::CONFIGURATION,
            _ => exit::FAILED,
        }
    }
}
