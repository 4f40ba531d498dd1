//! A teacher that is asked, at its endpoints or in this process.

use stillhouse_nn::Head;
use stillhouse_proto::v1::EncodingKind;

use super::{Error, Room, embedded, plan::Plan};
use crate::{
    label_client::{self, Job, LabelClient, OrderedLabels, Patience, Teachers, Wanted},
    recipe::{Recipe, TeacherSection, teacher::TeacherKind},
};

/// A teacher that is connected, before the first request for labels.
pub(crate) struct Teacher {
    client: LabelClient,
    /// For hidden states.
    head: Option<Head>,
    wanted: Wanted,
    server: Option<teacher_server::Running>,
}

impl Teacher {
    /// Starts it, where it is embedded, and connects.
    pub(crate) async fn connect(
        recipe: &Recipe,
        section: &TeacherSection,
        plan: &Plan,
    ) -> Result<Self, Error> {
        let wanted = Wanted::new(recipe, section);
        let (teachers, server) = match section.kind {
            TeacherKind::Embedded => {
                let server =
                    embedded::start(section, Room { rows: wanted.request_rows, tokens: 0 }).await?;
                (Teachers::at(vec![format!("http://{}", server.address())]), Some(server))
            }
            // Where it was captured, of a captured one: nobody asks it here.
            TeacherKind::Endpoints | TeacherKind::Captured => (Teachers::of(section), None),
        };
        let requests = recipe.train.batch_size.div_ceil(wanted.request_rows);
        let patience = Patience::new(section, requests);
        let probe = plan.probe(recipe.student.rescale_factor(), wanted.request_rows);
        let mut client = LabelClient::connect(&teachers, wanted.clone(), probe, patience).await?;
        if recipe.train.epochs == 1 {
            client.keep_none();
        }
        let head = match wanted.encoding_kind() {
            EncodingKind::Hidden => Some(client.fetch_head().await?),
            _ => None,
        };
        Ok(Self { client, head, wanted, server })
    }

    /// What it said of itself.
    pub(crate) fn described(&self) -> &label_client::Teacher {
        self.client.teacher()
    }

    /// Its output projection, for hidden states.
    pub(crate) fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Rows in the largest request.
    pub(crate) fn request_rows(&self) -> usize {
        self.wanted.request_rows
    }

    /// What pixels are multiplied by before they are sent; none if they are sent as they are.
    pub(crate) fn rescale_factor(&self, recipe: &Recipe) -> Option<f64> {
        (!self.described().takes_bytes).then_some(recipe.student.rescale_factor())
    }

    /// Ends rather than goes on without labels.
    pub(crate) fn must_have_labels(&mut self) {
        self.client.must_have_labels();
    }

    /// Keeps no labels: no row comes again.
    pub(crate) fn keep_none(&mut self) {
        self.client.keep_none();
    }

    /// Starts asking for labels, in the order of the jobs.
    pub(crate) fn ask<I>(self, jobs: I) -> (OrderedLabels, Option<teacher_server::Running>)
    where
        I: Iterator<Item = Job> + Send + 'static,
    {
        (self.client.labels(jobs), self.server)
    }
}
