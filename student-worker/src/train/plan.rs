//! What a run will do, worked out before anything starts: data, steps, requests.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use stillhouse_nn::Philox;
use stillhouse_proto::{
    dtype::extend_from_f32,
    v1::{DType, Tensor, label_request::Inputs},
};

use crate::{
    data::{self, Augment, DataError, Dataset, Fit, Sampler, Split, View, request_rows},
    label_client::{Job, PROBE_ROWS, Probe},
    random,
    recipe::Recipe,
};

/// Data and its order.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) train: Arc<Dataset>,
    pub(crate) test: Dataset,
    pub(crate) augment: Augment,
    pub(crate) seed: u64,
    pub(crate) sampler: Sampler,
    pub(crate) steps_per_epoch: u64,
    pub(crate) total_steps: u64,
}

impl Plan {
    /// Reads the data that a recipe names.
    pub(crate) fn read(recipe: &Recipe) -> Result<Self, DataError> {
        let fit = Fit::of(&recipe.student);
        let read = |split| data::read(&recipe.data, split, &fit);
        let (train, test) = (read(Split::Train)?, read(Split::Test)?);
        if train.shape() != test.shape() {
            let show = |data: &Dataset| format!("{:?}", data.shape());
            let (found, expected) =
                (show(&test), format!("{}, as those to train on", show(&train)));
            return Err(DataError::mismatch("shape of the images to test on", found, expected));
        }
        let train = recipe.data.filter().apply(train, recipe.seed)?;
        recipe.data.augment.check(&train)?;
        let sampler = Sampler::new(recipe.seed, train.len(), recipe.train.batch_size)?;
        let steps_per_epoch = sampler.steps_per_epoch();
        Ok(Self {
            train: Arc::new(train),
            test,
            augment: recipe.data.augment,
            seed: recipe.seed,
            sampler,
            steps_per_epoch,
            total_steps: steps_per_epoch * u64::from(recipe.train.epochs),
        })
    }

    /// The training rows as they are at a step.
    pub(crate) fn view(&self, step: u64) -> View<'_> {
        View::new(&self.train, self.augment, self.seed, step / self.steps_per_epoch)
    }

    /// The rows that every teacher is probed with: the first ones as they are, no more than a request
    /// may have.
    pub(crate) fn probe(&self, rescale_factor: f64, request_rows: usize) -> Probe {
        let rows: Vec<u32> = (0..PROBE_ROWS).take(self.train.len().min(request_rows)).collect();
        Probe {
            inputs: features(View::plain(&self.train), &rows, None),
            floats: Some(features(View::plain(&self.train), &rows, Some(rescale_factor))),
            rows: rows.len(),
        }
    }

    /// The first step that learns from soft labels.
    fn first_soft_step(&self, recipe: &Recipe) -> u64 {
        u64::from(recipe.loss_schedule.start_epoch.max(1) - 1) * self.steps_per_epoch
    }

    /// The requests for labels from `step` on. `rescale_factor`: for a teacher that does not take
    /// bytes.
    pub(crate) fn jobs(
        &self,
        recipe: &Recipe,
        step: u64,
        request_rows: usize,
        rescale_factor: Option<f64>,
    ) -> Jobs {
        let steps = step.max(self.first_soft_step(recipe))..self.total_steps;
        self.jobs_of(recipe, steps, request_rows, rescale_factor)
    }

    /// The requests for labels of some steps.
    pub(crate) fn jobs_of(
        &self,
        recipe: &Recipe,
        steps: Range<u64>,
        request_rows: usize,
        rescale_factor: Option<f64>,
    ) -> Jobs {
        Jobs {
            data: Arc::clone(&self.train),
            augment: self.augment,
            steps_per_epoch: self.steps_per_epoch,
            sampler: self.sampler.clone(),
            steps,
            request_rows: request_rows.max(1),
            requests_per_batch: recipe.train.batch_size.div_ceil(request_rows.max(1)) as u64,
            rescale_factor,
            seed: recipe.seed,
            recipe: recipe.clone(),
            whole: self.augment != Augment::default(),
            pending: VecDeque::new(),
        }
    }
}

/// The requests of a run: each step's rows, cut into pieces that a request may hold.
#[derive(Debug)]
pub(crate) struct Jobs {
    data: Arc<Dataset>,
    augment: Augment,
    steps_per_epoch: u64,
    sampler: Sampler,
    steps: Range<u64>,
    request_rows: usize,
    requests_per_batch: u64,
    rescale_factor: Option<f64>,
    seed: u64,
    /// Temperatures over the epochs.
    recipe: Recipe,
    /// Whether requests are not shared out over replicas.
    whole: bool,
    pending: VecDeque<Job>,
}

impl Iterator for Jobs {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        if self.pending.is_empty() {
            let step = self.steps.next()?;
            let epoch = step / self.steps_per_epoch;
            let temperature = self.recipe.loss_at(epoch + 1).temperature;
            let view = View::new(&self.data, self.augment, self.seed, epoch);
            let batch = self.sampler.batch(step);
            for (rows, part) in batch.rows.chunks(self.request_rows).zip(0..) {
                let index = batch.step * self.requests_per_batch + part;
                self.pending.push_back(Job {
                    index,
                    inputs: features(view, rows, self.rescale_factor),
                    rows: rows.len(),
                    temperature: temperature as f32,
                    seed: Philox::new(self.seed, random::teacher_draws(index)).next_u64(),
                    whole: self.whole,
                });
            }
        }
        self.pending.pop_front()
    }
}

/// Rows as they are, or rescaled.
fn features(view: View<'_>, rows: &[u32], rescale_factor: Option<f64>) -> Inputs {
    let shape = vec![rows.len() as u64, view.width() as u64];
    Inputs::Features(match rescale_factor {
        None => Tensor { dtype: DType::U8.into(), shape, data: view.gather(rows) },
        Some(factor) => {
            let values = view.gather_f32(rows, factor);
            let data = request_rows(size_of_val(&values[..]), |bytes| {
                extend_from_f32(bytes, DType::F32, &values);
            });
            Tensor { dtype: DType::F32.into(), shape, data }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{dataset_for_tests, images_for_tests};

    fn tensor(inputs: &Inputs) -> &Tensor {
        match inputs {
            Inputs::Features(tensor) => tensor,
            Inputs::Sequences(_) => panic!("sequences"),
        }
    }

    fn plan(rows: usize, batch: usize) -> (Plan, Recipe) {
        let data = dataset_for_tests(rows, 3, 2);
        let sampler = Sampler::new(1, rows, batch).unwrap();
        let steps_per_epoch = sampler.steps_per_epoch();
        let plan = Plan {
            train: Arc::new(data.clone()),
            test: data,
            augment: Augment::default(),
            seed: 1,
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
        assert_eq!(tensor(&jobs[0].inputs).data, plan.train.gather(&first[..3]));
        assert_eq!(tensor(&jobs[1].inputs).shape, [1, 3]);
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
    fn teacher_and_student_see_the_same_view_and_the_probe_none() {
        let (mut plan, recipe) = plan(10, 4);
        plan.train = Arc::new(images_for_tests(10, [1, 5, 5], 2));
        plan.augment = Augment { shift: 2, ..Augment::default() };
        let jobs: Vec<Job> = plan.jobs(&recipe, 0, 4, None).collect();
        let mut sampler = plan.sampler.clone();
        for (job, step) in jobs.iter().zip(0..) {
            let rows = sampler.batch(step).rows;
            assert_eq!(tensor(&job.inputs).data, plan.view(step).gather(&rows), "step {step}");
            assert_ne!(tensor(&job.inputs).data, plan.train.gather(&rows), "step {step}");
        }
        let later: Vec<Job> = plan.jobs(&recipe, 4, 4, None).collect();
        assert_eq!(jobs[4..], later);
        let probe = plan.probe(1.0, 4);
        assert_eq!(tensor(&probe.inputs).data, plan.train.gather(&[0, 1, 2, 3]));
    }

    #[test]
    fn rows_can_be_sent_rescaled() {
        let (plan, recipe) = plan(4, 4);
        let job = plan.jobs(&recipe, 0, 4, Some(0.5)).next().unwrap();
        assert_eq!(tensor(&job.inputs).dtype(), DType::F32);
        assert_eq!(tensor(&job.inputs).data.len(), 4 * 3 * 4);
    }
}
