//! Buffers for batches of images, used again from step to step.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::kernel::conv::{LANES, Lanes, Shape, pack_normalized};

/// Buffers that are not in use. Fresh ones cost a pass over memory to be zeroed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Vec<Lanes>>>>);

impl Pool {
    /// `count` images with whatever values.
    pub(crate) fn take(&self, count: usize, shape: Shape) -> Images {
        let length = count * shape.len();
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One of that length, or else the smallest that has room: a last batch that is short must not
        // make a second set of buffers.
        let room = |(_, buffer): &(usize, &Vec<Lanes>)| buffer.capacity() >= length;
        let fitting = free.iter().enumerate().filter(room);
        let fitting = fitting.min_by_key(|(_, buffer)| (buffer.len() != length, buffer.capacity()));
        let buffer = fitting.map(|(at, _)| at).map(|at| free.swap_remove(at));
        drop(free);
        let mut data = buffer.unwrap_or_default();
        data.resize(length, [0.0; LANES]);
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
        pairs.for_each(|(image, planes)| pack_normalized(planes, shape, (mean, std), image));
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
        assert_ne!(pool.take(3, shape).data.as_ptr(), at);
        // A short batch takes one with room, and leaves it for the next long one.
        assert_eq!(pool.take(1, shape).data.as_ptr(), at);
        let again = pool.take(2, shape);
        assert_eq!((again.data.as_ptr(), again.data.len()), (at, 8));
    }

    #[test]
    fn channels_that_do_not_exist_are_zero_whatever_the_buffer_held() {
        let (pool, shape) = (Pool::default(), Shape::new(2, 1, 2));
        pool.take(1, shape).data.fill([7.0; LANES]);
        let images = Images::normalized(&pool, &[1.0, 2.0, 3.0, 4.0], shape, &[1.0, 1.0], &[2.0]);
        assert_eq!(images.data[1][..3], [0.5, 3.0, 0.0]);
    }
}
