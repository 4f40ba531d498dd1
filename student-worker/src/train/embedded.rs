//! The teacher of an embedded run: its own server in this process, asked over the loopback
//! interface like any other.

use teacher_server::{Running, Server, Settings, StartError, ensemble::Rule};

use crate::recipe::{TeacherSection, teacher::EnsembleRule};

/// Starts it, with room for requests of `request_rows` rows.
pub(super) async fn start(
    section: &TeacherSection,
    request_rows: usize,
) -> Result<Running, StartError> {
    let mut settings = Settings::embedded("");
    settings.model = section.folders();
    settings.ensemble = match section.ensemble {
        None => settings.ensemble,
        Some(EnsembleRule::Arithmetic) => Rule::Arithmetic,
        Some(EnsembleRule::Geometric) => Rule::Geometric,
    };
    let rows = u32::try_from(request_rows).unwrap_or(u32::MAX);
    settings.limits.max_rows = settings.limits.max_rows.max(rows);
    let batching = &mut settings.batching;
    batching.max_batch_rows = batching.max_batch_rows.max(rows);
    batching.max_client_rows = batching.max_client_rows.max(rows);
    batching.max_queue_rows = batching.max_queue_rows.max(rows);
    Ok(Server::bind(settings).await?.spawn())
}
