//! A teacher's labels, captured into a folder, and replayed from it.
//!
//! ```text
//! capture.json        whose labels, of what, in which encoding; lengths and hashes of the others
//! labels.bin          the labels, one block per request                             (block.rs)
//! head.safetensors    of hidden states: the output projection
//! capture.lock        locked while labels are captured
//! ```
//!
//! Captured are the answers to the requests that a run would send, so that a student that is trained
//! on them ends with the weights of one that asked the teacher itself, byte for byte. Labels that are
//! the same in every epoch are captured once; of a temperature that changes, once for each value;
//! draws, and labels of images that are moved or mirrored, in every epoch.
//!
//! * [`run`]: captures; start here.
//! * [`Manifest`]: what a capture is of, and which recipes it serves.
//! * `requests`: which rows are in which request.
//! * `record`, `block`, `files`: the bytes, from the label of one row to a whole file.
//! * `folder`: who may write, and where to go on.
//! * `replay`: a capture in the place of a teacher.

mod block;
mod error;
mod files;
mod folder;
mod head;
mod manifest;
mod record;
mod replay;
mod requests;
mod run;

pub use error::CaptureError;
pub(crate) use head::{HEAD, read as read_head, write as write_head};
pub(crate) use manifest::labels_change_with_epochs;
pub use manifest::{CapturedTeacher, FileFacts, Manifest, Order, Slice};
pub(crate) use replay::{Capture, Replay};
pub use run::{Outcome, output_folder, run};

/// Reads bytes as a manifest, behind its length in two bytes, and the blocks that it describes.
pub(crate) fn fuzzed(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (text, mut blocks) = rest.split_at(length);
    let records = |layout: &record::Layout, mut bytes: &[u8]| {
        let mut all = Vec::new();
        while let Some(length) = layout.length(bytes).filter(|length| *length > 0)
            && let Some((record, rest)) = bytes.split_at_checked(length)
        {
            all.push(record);
            bytes = rest;
        }
        drop(layout.decode(all, 2.0));
    };
    let Ok(manifest) = Manifest::parse(std::path::Path::new("fuzzed"), text) else { return };
    let Ok(layout) = manifest.layout() else { return };
    // As if the checksums were right, which no fuzzer finds.
    records(&layout, blocks);
    loop {
        let left = blocks.len() as u64;
        let Ok(block::Found::Block(block)) = block::read(&mut blocks, left) else { return };
        records(&layout, &block.records);
    }
}
