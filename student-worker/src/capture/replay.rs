//! A capture in the place of a teacher.

use std::{fs::File, ops::Range, os::unix::fs::FileExt as _, path::PathBuf};

use stillhouse_nn::{PackedHead, SoftTarget};

use super::{
    CaptureError,
    block::{self, Found},
    files::{LABELS, verify},
    head::{self, HEAD},
    manifest::{MANIFEST, Manifest, temperature},
    record::Layout,
};
use crate::{
    label_client::{Wanted, soft_target},
    recipe::{self, Recipe},
    run_folder::RunError,
    train::Error,
};

/// A complete capture that has the labels of a recipe; its files are not opened yet.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    folder: PathBuf,
    manifest: Manifest,
}

impl Capture {
    /// The capture that a recipe names in place of a teacher. What the recipe leaves open about its
    /// labels is filled in.
    ///
    /// # Errors
    /// If there is none, it is incomplete, or its labels are not those that the recipe asks for:
    /// names the key and both values.
    pub(crate) fn of(
        recipe: &mut Recipe,
        rows: usize,
        rows_sha256: [u8; 32],
    ) -> Result<Self, CaptureError> {
        let Some(section) = &mut recipe.teacher else {
            let folder = PathBuf::new();
            return Err(CaptureError::Missing { folder, reason: "no [teacher]".to_owned() });
        };
        let folder = section.dir.clone().unwrap_or_default();
        let manifest = Manifest::read(&folder)?.ok_or_else(|| {
            let reason = format!("it has no {MANIFEST}");
            CaptureError::Missing { folder: folder.clone(), reason }
        })?;
        if !manifest.complete {
            return Err(CaptureError::Incomplete { folder });
        }
        let damaged = |reason| CaptureError::damaged(&folder.join(MANIFEST), reason);
        manifest.layout().map_err(damaged)?;
        section.encoding.get_or_insert_with(|| manifest.encoding.clone());
        section.ensemble = section.ensemble.or(manifest.ensemble);
        section.request_rows.get_or_insert(manifest.order.request_rows);
        recipe::check(recipe)?;

        // It was there a moment ago.
        let Some(section) = &recipe.teacher else {
            return Err(damaged("no [teacher]".to_owned()));
        };
        let factor = recipe.student.rescale_factor();
        let rescale = manifest.rescale_factor.map(|_| factor);
        let wanted = Manifest::new(recipe, section, rows, rows_sha256)
            .of_teacher(manifest.teacher.clone(), rescale);
        wanted.served_by(&manifest, &folder)?;
        let asks = Wanted::new(recipe, section);
        for epoch in recipe.loss_schedule.start_epoch.max(1)..=recipe.train.epochs {
            let temperature = temperature(recipe, &asks, epoch).unwrap_or_default();
            if manifest.slice(epoch.into(), temperature).is_none() {
                return Err(lacking(folder, &manifest, epoch, temperature));
            }
        }
        Ok(Self { folder, manifest })
    }

    /// The fingerprint of the teacher whose labels they are.
    ///
    /// # Errors
    /// If the manifest has none.
    pub(crate) fn fingerprint(&self) -> Result<Vec<u8>, CaptureError> {
        let text = &self.manifest.teacher.fingerprint;
        let bytes = text.as_bytes().as_chunks::<2>().0.iter().map(|pair| {
            let digits = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        let whole = !text.is_empty() && text.len().is_multiple_of(2);
        bytes.collect::<Option<Vec<u8>>>().filter(|_| whole).ok_or_else(|| {
            let reason = format!("teacher.fingerprint is {text:?}, expected hexadecimal digits");
            CaptureError::damaged(&self.folder.join(MANIFEST), reason)
        })
    }
}

/// What an epoch needs, and the capture has not.
fn lacking(folder: PathBuf, manifest: &Manifest, epoch: u32, temperature: f32) -> CaptureError {
    let of_epoch = manifest.slices.iter().find(|slice| slice.epoch == epoch);
    let list = |values: Vec<String>| values.join(", ");
    let (key, wanted, captured) = match of_epoch {
        None if manifest.every_epoch => {
            let epochs = manifest.slices.iter().map(|slice| slice.epoch.to_string()).collect();
            let wanted = format!("such that epoch {epoch} needs labels");
            ("train.epochs", wanted, format!("labels of the epochs {}", list(epochs)))
        }
        _ => {
            let of_epoch = |captured: u32| !manifest.every_epoch || captured == epoch;
            let captured = manifest.slices.iter().filter(|slice| of_epoch(slice.epoch));
            let all = captured.filter_map(|slice| Some(slice.temperature?.to_string())).collect();
            ("loss.temperature", format!("{temperature} in epoch {epoch}"), list(all))
        }
    };
    CaptureError::Mismatch { folder, key: key.to_owned(), wanted, captured }
}

/// Where the records of a slice's rows are: place and length of each.
type Index = Vec<(u64, u32)>;

/// The labels of a capture. Holds the place of every row's label, and no label.
#[derive(Debug)]
pub(crate) struct Replay {
    path: PathBuf,
    file: File,
    manifest: Manifest,
    layout: Layout,
    /// For hidden states.
    head: Option<PackedHead>,
    /// Where the blocks of each slice are.
    slices: Vec<Range<u64>>,
    /// The slice at hand.
    current: Option<(usize, Index)>,
}

impl Replay {
    /// Opens the files, which takes as long as reading them once.
    ///
    /// # Errors
    /// If a file is not the one that was captured, or labels of a row are not there or there twice.
    pub(crate) fn open(capture: Capture) -> Result<Self, Error> {
        let Capture { folder, manifest } = capture;
        let path = folder.join(LABELS);
        let damaged = |reason: String| CaptureError::damaged(&folder.join(MANIFEST), reason);
        let layout = manifest.layout().map_err(damaged)?;
        let hidden_size = manifest.teacher.hidden_size;
        for name in [LABELS].into_iter().chain(hidden_size.map(|_| HEAD)) {
            if !manifest.files.contains_key(name) {
                return Err(damaged(format!("files has no {name}")).into());
            }
        }
        let mut slices: Vec<Range<u64>> = Vec::new();
        verify(&folder, &manifest, |at, block| {
            let end = at + block.bytes();
            let epoch = |slice: usize| manifest.slices.get(slice).map(|slice| slice.epoch);
            match slices.len().checked_sub(1) {
                Some(last) if epoch(last) == Some(block.epoch) => slices[last].end = end,
                _ if epoch(slices.len()) == Some(block.epoch) => slices.push(at..end),
                _ => return Err(format!("a block at {at} is of epoch {}", block.epoch)),
            }
            Ok(())
        })?;
        if slices.len() != manifest.slices.len() {
            let (found, expected) = (slices.len(), manifest.slices.len());
            let reason = format!("labels of {found} parts, expected {expected}");
            return Err(CaptureError::damaged(&path, reason).into());
        }
        let head = match hidden_size {
            None => None,
            Some(hidden_size) => {
                let head = head::read(&folder, manifest.classes, hidden_size);
                Some(head.and_then(|head| head.pack()).map_err(Error::Load)?)
            }
        };
        let file = File::open(&path).map_err(|source| RunError::io(&path, source))?;
        Ok(Self { path, file, manifest, layout, head, slices, current: None })
    }

    /// The labels of rows in an epoch, counted from 1, at the temperature of its loss.
    ///
    /// # Errors
    /// If they cannot be read, or are none any more.
    pub(crate) fn take(
        &mut self,
        rows: &[u32],
        epoch: u64,
        temperature: f32,
    ) -> Result<SoftTarget, Error> {
        let damaged = |reason: String| CaptureError::damaged(&self.path, reason);
        let slice = self.manifest.slice(epoch, temperature);
        let slice = slice.ok_or_else(|| damaged(format!("no labels of epoch {epoch}")))?;
        let index = match self.current.take() {
            Some((at, index)) if at == slice => index,
            _ => self.index(slice)?,
        };
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            let entry = index.get(*row as usize);
            let (at, length) = *entry.ok_or_else(|| damaged(format!("no labels of row {row}")))?;
            let mut record = vec![0; length as usize];
            let read = self.file.read_exact_at(&mut record, at);
            read.map_err(|source| RunError::io(&self.path, source))?;
            records.push(record);
        }
        self.current = Some((slice, index));
        let captured = self.manifest.slices[slice].temperature.unwrap_or_default();
        let batch = self.layout.decode(records.iter().map(Vec::as_slice), captured);
        Ok(soft_target([batch.map_err(damaged)?], self.head.as_ref())?)
    }

    /// Finds the rows of a slice. Every one must be there once.
    fn index(&self, slice: usize) -> Result<Index, CaptureError> {
        let damaged = |reason: String| CaptureError::damaged(&self.path, reason);
        let mut index: Index = vec![(0, 0); self.manifest.rows];
        let Range { start, end } = self.slices[slice].clone();
        let mut reader = ReadAt { file: &self.file, at: start };
        while reader.at < end {
            let at = reader.at;
            let found = block::read(&mut reader, end - at);
            let Found::Block(block) = found.map_err(|source| RunError::io(&self.path, source))?
            else {
                return Err(damaged(format!("the block at {at} has changed")));
            };
            let mut within = 0;
            for row in &block.rows {
                let rest = &block.records[within..];
                let length = self.layout.length(rest).filter(|length| *length <= rest.len());
                let length = length.ok_or_else(|| damaged(format!("no label of row {row}")))?;
                let place = index.get_mut(*row as usize).filter(|place| place.1 == 0);
                let place = place.ok_or_else(|| {
                    damaged(format!("row {row} is labelled twice, or is none of the data"))
                })?;
                *place = (at + block.records_at() + within as u64, length as u32);
                within += length;
            }
            if within != block.records.len() {
                return Err(damaged(format!("the block at {at} is longer than its labels")));
            }
        }
        match index.iter().position(|place| place.1 == 0) {
            None => Ok(index),
            Some(row) => Err(damaged(format!("row {row} has no label"))),
        }
    }
}

/// A file from a place on, read without moving anybody's cursor.
struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl std::io::Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
