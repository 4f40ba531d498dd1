//! Where the labels of a run come from: a teacher, or what was captured of one.

use stillhouse_nn::Head;
use tokio::{runtime::Handle, task::spawn_blocking};

use super::{
    Error,
    labels::{AskedLabels, BatchLabels},
    plan::Plan,
    teacher::Teacher,
};
use crate::{
    capture::{Capture, Replay},
    recipe::{Recipe, TeacherSection, teacher::TeacherKind},
};

/// Where labels come from, before the first of them.
pub(super) enum Source {
    /// A teacher that is connected.
    Asked(Box<Teacher>),
    /// A capture whose files are opened, and the fingerprint of its teacher.
    Captured(Box<Replay>, Vec<u8>),
}

/// The capture that a recipe names in place of a teacher, if it does. What the recipe leaves open
/// about the labels is filled in.
///
/// # Errors
/// If it cannot be trained on.
pub(super) fn capture(
    recipe: &mut Recipe,
    plan: &Plan,
    data_sha256: [u8; 32],
) -> Result<Option<Capture>, Error> {
    match &recipe.teacher {
        Some(section) if section.kind == TeacherKind::Captured => {
            Ok(Some(Capture::of(recipe, plan.train.len(), data_sha256)?))
        }
        _ => Ok(None),
    }
}

impl Source {
    /// Opens the capture or, without one, connects to the teacher.
    pub(super) async fn open(
        recipe: &Recipe,
        section: &TeacherSection,
        plan: &Plan,
        capture: Option<Capture>,
    ) -> Result<Self, Error> {
        match capture {
            None => Ok(Self::Asked(Box::new(Teacher::connect(recipe, section, plan).await?))),
            Some(capture) => {
                let fingerprint = capture.fingerprint()?;
                let replay = spawn_blocking(|| Replay::open(capture)).await??;
                Ok(Self::Captured(Box::new(replay), fingerprint))
            }
        }
    }

    /// The teacher's fingerprint.
    pub(super) fn fingerprint(&self) -> &[u8] {
        match self {
            Self::Asked(teacher) => &teacher.described().fingerprint,
            Self::Captured(_, fingerprint) => fingerprint,
        }
    }

    /// Starts asking for the labels from `step` on. Returns the server of an embedded teacher, too.
    pub(super) fn labels(
        self,
        recipe: &Recipe,
        plan: &Plan,
        step: u64,
    ) -> Result<(BatchLabels, Option<teacher_server::Running>), Error> {
        let teacher = match self {
            Self::Captured(replay, _) => return Ok((BatchLabels::Captured(replay), None)),
            Self::Asked(teacher) => teacher,
        };
        let head = teacher.head().map(Head::pack).transpose()?;
        let request_rows = teacher.request_rows();
        let jobs = plan.jobs(recipe, step, request_rows, teacher.rescale_factor(recipe));
        let (labels, server) = teacher.ask(jobs);
        let runtime = Handle::current();
        Ok((BatchLabels::Asked(AskedLabels { labels, head, request_rows, runtime }), server))
    }
}
