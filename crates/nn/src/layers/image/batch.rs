//! Buffers for batches of images, used again from step to step.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::kernel::conv::{LANES, Lanes, Shape, pack};

/// Buffers that are not in use. Fresh ones cost a pass over memory to be zeroed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Vec<Lanes>>>>);

impl Pool {
    /// `count` images with whatever values.
    pub(crate) fn take(&self, count: usize, shape: Shape) -> Images {
        let length = count * shape.len();
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free.iter().rposition(|buffer| buffer.len() == length);
        let buffer = fitting.map(|position| free.swap_remove(position));
        drop(free);
        let data = buffer.unwrap_or_else(|| vec![[0.0; LANES]; length]);
        Images { shape, data, pool: self.clone() }
    }
}

/// A batch of images of one size, in blocks of channels.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) shape: Shape,
    pub(crate) data: Vec<Lanes>,
    pool: Pool,
}

impl Images {
    /// Of planes [count, channels, height, width], less `mean` and over `std` of each channel.
    pub(crate) fn normalized(
        pool: &Pool,
        planes: &[f32],
        shape: Shape,
        mean: &[f32],
        std: &[f32],
    ) -> Self {
        let features = shape.features();
        let mut images = pool.take(planes.len() / features, shape);
        let pairs = images.data.par_chunks_mut(shape.len()).zip(planes.par_chunks(features));
        pairs.for_each(|(image, planes)| {
            // Channels that do not exist.
            image.fill([0.0; LANES]);
            pack(planes, shape, image, |channel, x| {
                let mean = mean.get(channel).copied().unwrap_or(0.0);
                let std = std.get(channel).copied().unwrap_or(1.0);
                (x - mean) / std
            });
        });
        images
    }

    /// Number of images.
    pub(crate) fn count(&self) -> usize {
        self.data.len() / self.shape.len()
    }

    /// One after the other, on all threads.
    pub(crate) fn par_images(&self) -> rayon::slice::Chunks<'_, Lanes> {
        self.data.par_chunks(self.shape.len())
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.data);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_was_dropped_is_used_again() {
        let (pool, shape) = (Pool::default(), Shape::new(3, 2, 2));
        let first = pool.take(2, shape);
        let at = first.data.as_ptr();
        drop(first);
        assert_ne!(pool.take(3, shape).data.len(), 8);
        assert_eq!(pool.take(2, shape).data.as_ptr(), at);
    }

    #[test]
    fn channels_that_do_not_exist_are_zero_whatever_the_buffer_held() {
        let (pool, shape) = (Pool::default(), Shape::new(2, 1, 2));
        pool.take(1, shape).data.fill([7.0; LANES]);
        let images = Images::normalized(&pool, &[1.0, 2.0, 3.0, 4.0], shape, &[1.0, 1.0], &[2.0]);
        assert_eq!(images.data[1][..3], [0.5, 3.0, 0.0]);
    }
}
