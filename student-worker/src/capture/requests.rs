//! Which rows are in which request of a capture.

use crate::data::Sampler;

use super::manifest::Manifest;

/// The requests of a capture: those of a run, in the same order, but of the captured epochs only.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    sampler: Sampler,
    /// The captured epochs, from 1.
    epochs: Vec<u32>,
    request_rows: usize,
    per_batch: u64,
    per_epoch: u64,
}

/// Where a request is in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its epoch, from 1.
    pub(super) epoch: u32,
    /// Its step, from 0.
    pub(super) step: u64,
    /// Which request of the step it is.
    pub(super) part: u64,
}

impl Requests {
    pub(super) fn new(manifest: &Manifest, sampler: Sampler) -> Self {
        let batch = manifest.order.batch_size.max(1);
        let request_rows = manifest.order.request_rows.max(1);
        let per_batch = batch.div_ceil(request_rows) as u64;
        let steps = sampler.steps_per_epoch();
        let last = manifest.rows as u64 - (steps - 1) * batch as u64;
        Self {
            sampler,
            epochs: manifest.slices.iter().map(|slice| slice.epoch).collect(),
            request_rows,
            per_batch,
            per_epoch: (steps - 1) * per_batch + last.div_ceil(request_rows as u64),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.per_epoch * self.epochs.len() as u64
    }

    /// Where a request is; none after the last.
    pub(super) fn place(&self, request: u64) -> Option<Place> {
        let epoch = *self.epochs.get((request / self.per_epoch) as usize)?;
        let within = request % self.per_epoch;
        let step = u64::from(epoch - 1) * self.sampler.steps_per_epoch() + within / self.per_batch;
        Some(Place { epoch, step, part: within % self.per_batch })
    }

    /// Position in the run, by which the client numbers it.
    pub(super) fn index(&self, place: Place) -> u64 {
        place.step * self.per_batch + place.part
    }

    /// The rows of a request.
    pub(super) fn rows(&mut self, place: Place) -> Vec<u32> {
        let batch = self.sampler.batch(place.step).rows;
        let part = batch.chunks(self.request_rows).nth(place.part as usize);
        part.unwrap_or_default().to_vec()
    }

    /// The captured epochs from that of a request on, each with the step to begin at.
    pub(super) fn epochs_from(&self, place: Place) -> Vec<(u32, u64)> {
        let steps = self.sampler.steps_per_epoch();
        let epochs = self.epochs.iter().copied().filter(|epoch| *epoch >= place.epoch);
        epochs.map(|epoch| (epoch, (u64::from(epoch - 1) * steps).max(place.step))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{TeacherSection, recipe_for_tests, teacher::TeacherKind};

    #[test]
    fn every_row_of_a_captured_epoch_is_in_one_request_in_the_order_of_the_run() {
        let mut recipe = recipe_for_tests();
        recipe.train.batch_size = 4;
        let section =
            TeacherSection { request_rows: Some(3), ..TeacherSection::new(TeacherKind::Embedded) };
        recipe.teacher = Some(section.clone());
        let mut manifest = Manifest::new(&recipe, &section, 10, [0; 32]);
        manifest.slices = vec![manifest.slices[0]; 2];
        manifest.slices[1].epoch = 3;
        let mut sampler = Sampler::new(1, 10, 4).unwrap();
        let mut requests = Requests::new(&manifest, sampler.clone());
        // Batches of 4, 4 and 2 rows.
        assert_eq!(requests.count(), 2 * 5);
        let places: Vec<Place> = (0..10).map_while(|at| requests.place(at)).collect();
        let found: Vec<_> =
            places.iter().map(|at| (at.epoch, at.step, at.part, requests.index(*at))).collect();
        let expected = [(1, 0, 0, 0), (1, 0, 1, 1), (1, 1, 0, 2), (1, 1, 1, 3), (1, 2, 0, 4)];
        assert_eq!(found[..5], expected);
        assert_eq!(found[5..7], [(3, 6, 0, 12), (3, 6, 1, 13)]);
        assert_eq!(requests.place(10), None);
        for steps in [0..3, 6..9] {
            let wanted: Vec<u32> = steps.clone().flat_map(|at| sampler.batch(at).rows).collect();
            let of_epoch = places.iter().filter(|place| steps.contains(&place.step));
            let rows: Vec<u32> = of_epoch.flat_map(|place| requests.rows(*place)).collect();
            assert_eq!(rows, wanted);
        }
        assert_eq!(requests.epochs_from(places[3]), [(1, 1), (3, 6)]);
        assert_eq!(requests.epochs_from(places[7]), [(3, 7)]);
    }
}
