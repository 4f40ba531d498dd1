//! What a run will do, worked out before anything starts: data, steps, requests.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
};

use stillhouse_nn::Philox;
use stillhouse_proto::{
    dtype::extend_from_f32,
    v1::{DType, Tensor},
};

use crate::{
    data::{
        DataError, Dataset, Sampler,
        mnist::{Files, Split},
        subset,
    },
    label_client::{Job, PROBE_ROWS, Probe},
    random,
    recipe::{DataSection, Recipe},
};

/// Data and its order.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) train: Arc<Dataset>,
    pub(super) test: Dataset,
    pub(super) sampler: Sampler,
    pub(super) steps_per_epoch: u64,
    pub(super) total_steps: u64,
}

impl Plan {
    /// Reads the data that a recipe names.
    pub(super) fn read(recipe: &Recipe) -> Result<Self, DataError> {
        let (width, classes) = (recipe.student.input_width(), recipe.student.classes());
        let read = |split| files(&recipe.data, split)?.read(width, classes);
        let (mut train, test) = (read(Split::Train)?, read(Split::Test)?);
        if let Some(count) = recipe.data.train_rows {
            train = subset::balanced(&train, count, recipe.seed)?;
        }
        let sampler = Sampler::new(recipe.seed, train.len(), recipe.train.batch_size)?;
        let steps_per_epoch = sampler.steps_per_epoch();
        Ok(Self {
            train: Arc::new(train),
            test,
            sampler,
            steps_per_epoch,
            total_steps: steps_per_epoch * u64::from(recipe.train.epochs),
        })
    }

    /// The rows that every teacher is probed with: the first ones, no more than a request may have.
    pub(super) fn probe(&self, rescale_factor: f64, request_rows: usize) -> Probe {
        let rows: Vec<u32> = (0..PROBE_ROWS).take(self.train.len().min(request_rows)).collect();
        Probe {
            bytes: features(&self.train, &rows, None),
            floats: features(&self.train, &rows, Some(rescale_factor)),
        }
    }

    /// The first step that learns from soft labels.
    fn first_soft_step(&self, recipe: &Recipe) -> u64 {
        u64::from(recipe.loss_schedule.start_epoch.max(1) - 1) * self.steps_per_epoch
    }

    /// The requests for labels from `step` on. `rescale_factor`: for a teacher that does not take
    /// bytes.
    pub(super) fn jobs(
        &self,
        recipe: &Recipe,
        step: u64,
        request_rows: usize,
        rescale_factor: Option<f64>,
    ) -> Jobs {
        Jobs {
            data: Arc::clone(&self.train),
            sampler: self.sampler.clone(),
            steps: step.max(self.first_soft_step(recipe))..self.total_steps,
            request_rows: request_rows.max(1),
            requests_per_batch: recipe.train.batch_size.div_ceil(request_rows.max(1)) as u64,
            rescale_factor,
            seed: recipe.seed,
            recipe: recipe.clone(),
            steps_per_epoch: self.steps_per_epoch,
            pending: VecDeque::new(),
        }
    }
}

/// The files of one part of a recipe's dataset. One that is named wins over the folder, which need
/// not hold it then.
fn files(data: &DataSection, split: Split) -> Result<Files, DataError> {
    let (images, labels) = match split {
        Split::Train => (&data.train_images, &data.train_labels),
        Split::Test => (&data.test_images, &data.test_labels),
    };
    let pick =
        |named: &Option<PathBuf>, find: fn(Split, &Path) -> Result<PathBuf, DataError>| match (
            named, &data.dir,
        ) {
            (Some(named), _) => Ok(named.clone()),
            (None, Some(dir)) => find(split, dir),
            (None, None) => Err(DataError::Mismatch {
                field: "data.dir".into(),
                found: "not set".into(),
                expected: "a path, or all four files".into(),
            }),
        };
    Ok(Files { images: pick(images, Split::images)?, labels: pick(labels, Split::labels)? })
}

/// The requests of a run: each step's rows, cut into pieces that a request may hold.
#[derive(Debug)]
pub(super) struct Jobs {
    data: Arc<Dataset>,
    sampler: Sampler,
    steps: std::ops::Range<u64>,
    request_rows: usize,
    requests_per_batch: u64,
    rescale_factor: Option<f64>,
    seed: u64,
    /// Temperatures over the epochs.
    recipe: Recipe,
    steps_per_epoch: u64,
    pending: VecDeque<Job>,
}

impl Iterator for Jobs {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        if self.pending.is_empty() {
            let step = self.steps.next()?;
            let temperature = self.recipe.loss_at(step / self.steps_per_epoch + 1).temperature;
            let batch = self.sampler.batch(step);
            for (rows, part) in batch.rows.chunks(self.request_rows).zip(0..) {
                let index = batch.step * self.requests_per_batch + part;
                self.pending.push_back(Job {
                    index,
                    features: features(&self.data, rows, self.rescale_factor),
                    rows: rows.len(),
                    temperature: temperature as f32,
                    seed: Philox::new(self.seed, random::teacher_draws(index)).next_u64(),
                });
            }
        }
        self.pending.pop_front()
    }
}

/// Rows as they are, or rescaled.
fn features(data: &Dataset, rows: &[u32], rescale_factor: Option<f64>) -> Tensor {
    let shape = vec![rows.len() as u64, data.width() as u64];
    match rescale_factor {
        None => Tensor { dtype: DType::U8.into(), shape, data: data.gather(rows) },
        Some(factor) => {
            let mut bytes = Vec::new();
            extend_from_f32(&mut bytes, DType::F32, &data.gather_f32(rows, factor));
            Tensor { dtype: DType::F32.into(), shape, data: bytes.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset_for_tests;

    fn plan(rows: usize, batch: usize) -> (Plan, Recipe) {
        let data = dataset_for_tests(rows, 3, 2);
        let sampler = Sampler::new(1, rows, batch).unwrap();
        let steps_per_epoch = sampler.steps_per_epoch();
        let plan = Plan {
            train: Arc::new(data.clone()),
            test: data,
            sampler,
            steps_per_epoch,
            total_steps: 2 * steps_per_epoch,
        };
        let mut recipe = crate::recipe::recipe_for_tests();
        recipe.train.batch_size = batch;
        (plan, recipe)
    }

    #[test]
    fn batches_are_cut_into_requests_in_order() {
        let (plan, recipe) = plan(10, 4);
        let jobs: Vec<Job> = plan.jobs(&recipe, 0, 3, None).collect();
        let rows: Vec<usize> = jobs.iter().map(|job| job.rows).collect();
        assert_eq!(rows, [3, 1, 3, 1, 2, 3, 1, 3, 1, 2]);
        let mut sampler = plan.sampler.clone();
        let first = sampler.batch(0).rows;
        assert_eq!(jobs[0].features.data, plan.train.gather(&first[..3]));
        assert_eq!(jobs[1].features.shape, [1, 3]);
    }

    #[test]
    fn a_resumed_run_asks_for_the_same_with_the_same_seeds() {
        let (plan, recipe) = plan(10, 4);
        let all: Vec<Job> = plan.jobs(&recipe, 0, 2, None).collect();
        let later: Vec<Job> = plan.jobs(&recipe, 3, 2, None).collect();
        assert_eq!(all[all.len() - later.len()..], later);
        let mut seeds: Vec<u64> = all.iter().map(|job| job.seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), all.len());
    }

    #[test]
    fn files_that_are_named_win_over_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let named = |name: &str| Some(PathBuf::from(name));
        let mut data = DataSection {
            dir: Some(folder.path().to_owned()),
            train_images: named("images"),
            train_labels: named("labels"),
            ..DataSection::default()
        };
        let found = files(&data, Split::Train).unwrap();
        assert_eq!(found, Files { images: "images".into(), labels: "labels".into() });
        // The folder is asked for the other one only.
        let error = files(&data, Split::Test).unwrap_err().to_string();
        assert!(error.contains("t10k-images-idx3-ubyte"), "{error}");
        data.test_images = named("images");
        let error = files(&data, Split::Test).unwrap_err().to_string();
        assert!(error.contains("t10k-labels-idx1-ubyte"), "{error}");
        let labels = folder.path().join("t10k-labels-idx1-ubyte");
        std::fs::write(&labels, []).unwrap();
        assert_eq!(files(&data, Split::Test).unwrap().labels, labels);
    }

    #[test]
    fn rows_can_be_sent_rescaled() {
        let (plan, recipe) = plan(4, 4);
        let job = plan.jobs(&recipe, 0, 4, Some(0.5)).next().unwrap();
        assert_eq!(job.features.dtype(), DType::F32);
        assert_eq!(job.features.data.len(), 4 * 3 * 4);
    }
}
