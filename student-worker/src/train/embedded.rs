//! The teacher of an embedded run: its own server in this process, asked over the loopback
//! interface like any other.

use teacher_server::{Running, Server, Settings, StartError, ensemble::Rule};

use crate::recipe::{TeacherSection, teacher::EnsembleRule};

/// What the largest request holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Rows, or sequences.
    pub(crate) rows: usize,
    /// Tokens of a text model's request; otherwise 0.
    pub(crate) tokens: usize,
}

/// Starts it, with room for such requests.
pub(crate) async fn start(section: &TeacherSection, room: Room) -> Result<Running, StartError> {
    let mut settings = Settings::embedded("");
    settings.model = section.folders();
    settings.ensemble = match section.ensemble {
        None => settings.ensemble,
        Some(EnsembleRule::Arithmetic) => Rule::Arithmetic,
        Some(EnsembleRule::Geometric) => Rule::Geometric,
    };
    let [rows, tokens] = [room.rows, room.tokens].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let limits = &mut settings.limits;
    limits.max_rows = limits.max_rows.max(rows);
    limits.max_tokens = limits.max_tokens.max(tokens);
    let batching = &mut settings.batching;
    batching.max_batch_rows = batching.max_batch_rows.max(rows);
    batching.max_client_rows = batching.max_client_rows.max(rows);
    batching.max_queue_rows = batching.max_queue_rows.max(rows);
    batching.max_batch_tokens = batching.max_batch_tokens.max(tokens);
    batching.max_client_tokens = batching.max_client_tokens.max(tokens);
    batching.max_queue_tokens = batching.max_queue_tokens.max(tokens);
    Ok(Server::bind(settings).await?.spawn())
}
