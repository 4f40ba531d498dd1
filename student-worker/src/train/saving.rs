//! What a session leaves, whatever it trains.

use std::path::Path;

use stillhouse_nn::StateError;

use super::{Error, Interrupted};
use crate::{
    progress::{Event, Observer},
    recipe::identity::Identity,
    run_folder::{Checkpoint, RunFolder},
};

/// Saves a trainer's state after `step` steps, and says so.
pub(crate) fn checkpoint(
    (run, identity): (&mut RunFolder, &Identity),
    observer: &mut dyn Observer,
    step: u64,
    save_state: impl FnOnce(&Path) -> Result<(), StateError>,
) -> Result<Checkpoint, Error> {
    let checkpoint =
        run.checkpoint(step, identity, |folder| Ok::<_, Error>(save_state(folder)?))?;
    observer.on(&Event::Checkpoint { step, folder: &checkpoint.folder });
    Ok(checkpoint)
}

/// What a session ends with when labels cannot be had: `saved` is what there was, for another try or to go
/// on from by hand.
pub(crate) fn interrupted(
    saved: Result<Checkpoint, Error>,
    observer: &mut dyn Observer,
    source: Error,
) -> Result<Error, Error> {
    let checkpoint = match saved {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            tracing::error!(%source, "no labels, and no checkpoint either");
            return Err(error);
        }
    };
    let step = checkpoint.position.step;
    observer.on(&Event::Ended { step });
    Ok(Interrupted { step, checkpoint: checkpoint.folder, source }.into())
}
