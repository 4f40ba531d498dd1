//! `capture.json`: what was captured, of whom, and whether it is all there.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CaptureError, record::Layout};
use crate::{
    data::Augment,
    label_client::Wanted,
    recipe::{
        Recipe, TeacherSection,
        identity::hex,
        teacher::{EncodingName, EncodingSection, EnsembleRule},
    },
    run_folder::{RunError, put_json},
};

/// The manifest's file.
pub(super) const MANIFEST: &str = "capture.json";
const FORMAT: u32 = 1;

/// What was captured, of whom, and whether it is all there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the folder's layout.
    pub format: u32,
    /// Whether all labels are there.
    pub complete: bool,
    /// Who gave them.
    pub teacher: CapturedTeacher,
    /// What they travelled as; `values` is given where they are logits.
    pub encoding: EncodingSection,
    /// How an ensemble's distributions became one; absent: as the teacher does it.
    pub ensemble: Option<EnsembleRule>,
    /// Classes.
    pub classes: usize,
    /// Elements per row of the data.
    pub width: usize,
    /// Rows of the data that were labelled.
    pub rows: usize,
    /// SHA-256 of them, hexadecimal.
    pub rows_sha256: String,
    /// What pixels were multiplied by; absent: the teacher took them as they are.
    pub rescale_factor: Option<f64>,
    /// Whether every epoch has labels of its own. Otherwise labels of a temperature serve all epochs
    /// with that temperature.
    pub every_epoch: bool,
    /// What was captured, in order: each has labels of all rows.
    pub slices: Vec<Slice>,
    /// In which order rows were asked for. It decides the labels where every epoch has its own, and
    /// otherwise only the order of the bytes.
    pub order: Order,
    /// What was done to the images.
    pub augment: Augment,
    /// Every other file, once all is there.
    pub files: BTreeMap<String, FileFacts>,
}

/// A teacher whose labels were captured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapturedTeacher {
    /// Its name for itself.
    pub name: String,
    /// Its fingerprint, hexadecimal.
    pub fingerprint: String,
    /// Width of its hidden states; absent unless these were captured.
    pub hidden_size: Option<usize>,
}

/// The labels of all rows, of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// The epoch, from 1: the only one that they are the labels of, or the first.
    pub epoch: u32,
    /// Their temperature; absent where it plays no part.
    pub temperature: Option<f32>,
}

/// What decides which rows are in which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The recipe's seed, of the order of rows and of the teacher's draws.
    pub seed: u64,
    /// Rows per step.
    pub batch_size: usize,
    /// Rows per request, at most.
    pub request_rows: usize,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// Whether a row has other labels in another epoch of one temperature. What makes them differ must
/// be among [`Manifest::decides`], too.
pub(crate) fn labels_change_with_epochs(recipe: &Recipe) -> bool {
    let draws = recipe.teacher.as_ref().is_some_and(|teacher| {
        // Draws are anew in each epoch.
        teacher.encoding().kind == EncodingName::Sampled
    });
    draws || !recipe.data.augment.is_none()
}

/// A key of a recipe, or what follows from several, and its value in words.
type Deciding = (&'static str, String);

impl Manifest {
    /// What capturing the labels of a recipe comes to, with nothing done yet. The teacher is not
    /// known: see [`Self::of_teacher`].
    pub(super) fn new(
        recipe: &Recipe,
        section: &TeacherSection,
        rows: usize,
        rows_sha256: [u8; 32],
    ) -> Self {
        let wanted = Wanted::new(recipe, section);
        let every_epoch = labels_change_with_epochs(recipe);
        let mut slices: Vec<Slice> = Vec::new();
        for epoch in recipe.loss_schedule.start_epoch.max(1)..=recipe.train.epochs {
            let temperature = temperature(recipe, &wanted, epoch);
            if every_epoch || slices.iter().all(|slice| slice.temperature != temperature) {
                slices.push(Slice { epoch, temperature });
            }
        }
        Self {
            format: FORMAT,
            complete: false,
            teacher: CapturedTeacher::default(),
            encoding: section.encoding().explicit(recipe.loss.divergence),
            ensemble: section.ensemble,
            classes: recipe.student.classes(),
            width: recipe.student.input_width(),
            rows,
            rows_sha256: hex(&rows_sha256),
            rescale_factor: None,
            every_epoch,
            slices,
            order: Order {
                seed: recipe.seed,
                batch_size: recipe.train.batch_size,
                request_rows: wanted.request_rows,
            },
            augment: recipe.data.augment,
            files: BTreeMap::new(),
        }
    }

    /// With what follows from the teacher. `rescale_factor`: where it takes no bytes.
    pub(super) fn of_teacher(self, teacher: CapturedTeacher, rescale_factor: Option<f64>) -> Self {
        Self { teacher, rescale_factor, ..self }
    }

    /// Reads the manifest of a folder; none if it has none.
    ///
    /// # Errors
    /// If it cannot be read, or is none of this version.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, CaptureError> {
        let file = folder.join(MANIFEST);
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RunError::io(&file, source).into()),
        };
        Self::parse(&file, &text).map(Some)
    }

    /// Reads the bytes of a manifest's file.
    pub(super) fn parse(file: &Path, text: &[u8]) -> Result<Self, CaptureError> {
        let damaged = |reason| CaptureError::damaged(file, reason);
        // The version first: another one may have other fields.
        let value: Value =
            serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        if value.get("format") != Some(&FORMAT.into()) {
            let found = value.get("format").map_or("missing".to_owned(), Value::to_string);
            return Err(damaged(format!("format is {found}, expected {FORMAT}")));
        }
        serde_json::from_value(value).map_err(|error| damaged(error.to_string()))
    }

    /// Writes it: the file holds it whole, or is as it was.
    pub(super) fn write(&self, folder: &Path) -> Result<(), CaptureError> {
        Ok(put_json(&folder.join(MANIFEST), self)?)
    }

    /// How its labels are stored.
    ///
    /// # Errors
    /// Says which size is missing or outside its range.
    pub(super) fn layout(&self) -> Result<Layout, String> {
        Layout::new(&self.encoding, self.classes, self.teacher.hidden_size)
    }

    /// Labels in the whole of it: rows, as often as each was labelled.
    pub(super) fn labels(&self) -> u64 {
        self.rows as u64 * self.slices.len() as u64
    }

    /// The labels of an epoch, counted from 1, at a temperature: which slice they are in.
    pub(super) fn slice(&self, epoch: u64, temperature: f32) -> Option<usize> {
        self.slices.iter().position(|slice| {
            let of_epoch = !self.every_epoch || u64::from(slice.epoch) == epoch;
            of_epoch && slice.temperature.is_none_or(|captured| captured == temperature)
        })
    }

    /// What decides the label of a row, beside the teacher and the temperature. First what other
    /// values follow from.
    fn decides(&self) -> Vec<Deciding> {
        let encoding = &self.encoding;
        let mut all = vec![
            ("teacher.encoding.kind", words(&encoding.kind)),
            ("teacher.encoding.dtype", words(&encoding.dtype)),
            ("teacher.encoding.values", words(&encoding.values.unwrap_or_default())),
            ("teacher.encoding.k", words(&encoding.k)),
            ("teacher.encoding.draws", words(&encoding.draws)),
            ("teacher.ensemble", words(&self.ensemble)),
            ("student.num_labels", words(&self.classes)),
            ("student.input_size", words(&self.width)),
            ("student.rescale_factor", words(&self.rescale_factor)),
            ("data.augment.shift", words(&self.augment.shift)),
            ("data.augment.crop_padding", words(&self.augment.crop_padding)),
            ("data.augment.flip", words(&self.augment.flip)),
        ];
        if self.every_epoch {
            all.push(("seed", words(&self.order.seed)));
        }
        if encoding.kind == EncodingName::Sampled {
            all.extend(self.requests());
        }
        all.push(("data (rows to train on)", words(&self.rows)));
        all.push(("data (SHA-256 of the training rows)", words(&self.rows_sha256)));
        all
    }

    /// What decides which rows are in which request.
    fn requests(&self) -> [Deciding; 2] {
        [
            ("train.batch_size", words(&self.order.batch_size)),
            ("teacher.request_rows", words(&self.order.request_rows)),
        ]
    }

    /// Whether labels that are captured now may go on where `before` ended. Without a teacher, what
    /// follows from it is left out.
    ///
    /// # Errors
    /// Names the first key that differs, and both values.
    pub(super) fn goes_on(
        &self,
        before: &Self,
        folder: &Path,
        with_teacher: bool,
    ) -> Result<(), CaptureError> {
        let all = |manifest: &Self| {
            let mut all = manifest.decides();
            all.push(("seed", words(&manifest.order.seed)));
            all.extend(manifest.requests());
            let temperatures: Vec<_> =
                manifest.slices.iter().map(|slice| slice.temperature).collect();
            let epochs: Vec<_> = manifest.slices.iter().map(|slice| slice.epoch).collect();
            all.push(("loss.temperature (of each part)", words(&temperatures)));
            all.push(("train.epochs (that are captured)", words(&epochs)));
            all.push(("teacher (hidden size)", words(&manifest.teacher.hidden_size)));
            all.push(("teacher (fingerprint)", words(&manifest.teacher.fingerprint)));
            all
        };
        let of_teacher =
            |key: &str| key.starts_with("teacher (") || key.ends_with("rescale_factor");
        let counts = |key: &str| with_teacher || !of_teacher(key);
        first_difference(all(self), all(before), folder, counts)
    }

    /// Whether the labels of `captured` are those that this one asks for.
    ///
    /// # Errors
    /// Names the first key that differs, and both values.
    pub(super) fn served_by(&self, captured: &Self, folder: &Path) -> Result<(), CaptureError> {
        first_difference(self.decides(), captured.decides(), folder, |_| true)
    }
}

/// The temperature of the labels of an epoch; none where it plays no part.
pub(super) fn temperature(recipe: &Recipe, wanted: &Wanted, epoch: u32) -> Option<f32> {
    let temperature = recipe.loss_at(epoch.into()).temperature as f32;
    wanted.depends_on_temperature().then_some(temperature)
}

fn words(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::Null) => "not set".to_owned(),
        Ok(value) => value.to_string(),
        Err(error) => error.to_string(),
    }
}

fn first_difference(
    wanted: Vec<Deciding>,
    captured: Vec<Deciding>,
    folder: &Path,
    counts: impl Fn(&str) -> bool,
) -> Result<(), CaptureError> {
    // The lists differ in length where an encoding differs, which comes first.
    for ((key, wanted), (_, captured)) in wanted.into_iter().zip(captured) {
        if wanted != captured && counts(key) {
            let (folder, key) = (folder.to_owned(), key.to_owned());
            return Err(CaptureError::Mismatch { folder, key, wanted, captured });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{
        Change, Step, recipe_for_tests,
        teacher::{DenseValues, TeacherKind},
    };

    fn recipe(change: impl Fn(&mut Recipe, &mut EncodingSection)) -> Recipe {
        let mut recipe = recipe_for_tests();
        recipe.train.epochs = 4;
        let mut encoding = EncodingSection::default();
        change(&mut recipe, &mut encoding);
        let section = TeacherSection::new(TeacherKind::Embedded);
        recipe.teacher = Some(TeacherSection { encoding: Some(encoding), ..section });
        recipe
    }

    fn manifest(recipe: &Recipe) -> Manifest {
        Manifest::new(recipe, recipe.teacher.as_ref().unwrap(), 10, [7; 32])
    }

    fn slices(recipe: &Recipe) -> Vec<(u32, Option<f32>)> {
        manifest(recipe).slices.iter().map(|slice| (slice.epoch, slice.temperature)).collect()
    }

    fn halves(recipe: &mut Recipe) {
        let step = |epoch, value| Step { epoch, value };
        let steps = vec![step(2, 2.0), step(4, 4.0)];
        recipe.loss_schedule.temperature = Some(Change::Steps { steps });
    }

    #[test]
    fn no_label_is_captured_twice() {
        assert_eq!(slices(&recipe(|_, _| {})), [(1, Some(4.0))]);
        // A temperature that comes back has labels already.
        assert_eq!(slices(&recipe(|r, _| halves(r))), [(1, Some(4.0)), (2, Some(2.0))]);
        let late = recipe(|r, _| {
            halves(r);
            r.loss_schedule.start_epoch = 3;
        });
        assert_eq!(slices(&late), [(3, Some(2.0)), (4, Some(4.0))]);
        // Logits and hidden states are the same at every temperature.
        for change in [
            |e: &mut EncodingSection| e.values = Some(DenseValues::Logits),
            |e: &mut EncodingSection| e.kind = EncodingName::Hidden,
        ] {
            let recipe = recipe(|r, e| {
                halves(r);
                change(e);
            });
            assert_eq!(slices(&recipe), [(1, None)]);
        }
    }

    #[test]
    fn draws_and_moved_images_have_labels_in_every_epoch() {
        let all = [(1, Some(4.0)), (2, Some(4.0)), (3, Some(4.0)), (4, Some(4.0))];
        let sampled = recipe(|_, e| e.kind = EncodingName::Sampled);
        assert_eq!(slices(&sampled), all);
        assert_eq!(slices(&recipe(|r, _| r.data.augment.flip = true)), all);
        let manifest = manifest(&sampled);
        assert_eq!((manifest.slice(3, 4.0), manifest.slice(3, 2.0)), (Some(2), None));
        assert_eq!((manifest.slice(5, 4.0), manifest.labels()), (None, 40));
    }

    #[test]
    fn labels_of_a_temperature_serve_every_epoch_with_it() {
        let scheduled = manifest(&recipe(|r, _| halves(r)));
        assert_eq!((scheduled.slice(9, 2.0), scheduled.slice(1, 3.0)), (Some(1), None));
        let logits = manifest(&recipe(|_, e| e.values = Some(DenseValues::Logits)));
        assert_eq!(logits.slice(9, 3.0), Some(0));
    }

    #[test]
    fn what_decides_labels_must_be_the_same() {
        let folder = Path::new("c");
        let key = |wanted: &Recipe, captured: &Recipe| match manifest(wanted)
            .served_by(&manifest(captured), folder)
        {
            Ok(()) => String::new(),
            Err(CaptureError::Mismatch { key, .. }) => key,
            Err(error) => panic!("{error}"),
        };
        let dense = recipe(|_, _| {});
        let other = recipe(|r, _| {
            // None of these decides a dense label.
            r.seed = 9;
            r.train.batch_size = 3;
            r.loss.temperature = 9.0;
        });
        assert_eq!(key(&other, &dense), "");
        let logits = recipe(|_, e| e.values = Some(DenseValues::Logits));
        assert_eq!(key(&logits, &dense), "teacher.encoding.values");
        let sampled = |change: fn(&mut Recipe)| {
            recipe(|r, e| {
                *e = EncodingSection {
                    kind: EncodingName::Sampled,
                    draws: Some(3),
                    ..EncodingSection::default()
                };
                change(r);
            })
        };
        assert_eq!(key(&sampled(|_| {}), &dense), "teacher.encoding.kind");
        assert_eq!(key(&sampled(|r| r.seed = 9), &sampled(|_| {})), "seed");
        assert_eq!(key(&sampled(|r| r.train.batch_size = 3), &sampled(|_| {})), "train.batch_size");
        let flipped = recipe(|r, _| r.data.augment.flip = true);
        assert_eq!(key(&dense, &flipped), "data.augment.flip");

        // To go on, the bytes must be the same too.
        let error = manifest(&other).goes_on(&manifest(&dense), folder, false).unwrap_err();
        let expected = "seed is 9, but the capture in c was made with 1";
        assert_eq!(error.to_string(), expected);
        let teacher = |name: &str| {
            let fingerprint = name.to_owned();
            let teacher = CapturedTeacher { fingerprint, ..CapturedTeacher::default() };
            manifest(&dense).of_teacher(teacher, None)
        };
        assert!(teacher("b").goes_on(&teacher("a"), folder, false).is_ok());
        let error = teacher("b").goes_on(&teacher("a"), folder, true).unwrap_err().to_string();
        assert_eq!(
            error,
            "teacher (fingerprint) is \"b\", but the capture in c was made with \"a\""
        );
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Manifest::read(folder.path()).unwrap().is_none());
        let written = manifest(&recipe(|r, _| {
            halves(r);
            r.loss.temperature = 2.7;
        }));
        written.write(folder.path()).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), Some(written));
        let file = folder.path().join(MANIFEST);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
        let error = Manifest::read(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("damaged: format is 2, expected 1"), "{error}");
    }
}
