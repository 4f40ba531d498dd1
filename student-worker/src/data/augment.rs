//! Training images, moved and mirrored at random, anew in every epoch.
//!
//! Teacher and student see the same view of an image (Beyer et al., "Knowledge distillation: a good
//! teacher is patient and consistent", CVPR 2022: "consistent teaching"). A view is a function of the
//! seed, the epoch and the row, so that neither the batches nor the requests that a row is in play a
//! part, nor where a run was resumed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stillhouse_nn::Philox;

use super::{
    DataError, Dataset,
    dataset::{request_rows, rescale},
};
use crate::random;

/// Words of a random stream that belong to one row.
const WORDS_PER_ROW: u64 = 4;

/// What is done to the images that are trained on. Tests see them as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Most pixels that an image is moved by, up or down and left or right, uniformly and in whole
    /// pixels; zeros come in. (The jitter of Hinton et al., "Distilling the knowledge in a neural
    /// network", 2015, section 3, has 2.)
    pub shift: u32,
    /// Zeros that are added on each side before a random part of the old size is taken, as in
    /// torchvision's `RandomCrop(size, padding)`. The same distribution as `shift` of as many.
    pub crop_padding: u32,
    /// Whether left and right are swapped, with probability 1/2.
    pub flip: bool,
}

impl Augment {
    /// Whether images stay as they are.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Most pixels that an image is moved by; `shift` and `crop_padding` are not both set.
    fn most(&self) -> u32 {
        self.shift.max(self.crop_padding)
    }

    /// Refuses distances that could move a whole image out of sight.
    ///
    /// # Errors
    /// Names the key, its value and the range.
    pub fn check(&self, data: &Dataset) -> Result<(), DataError> {
        let [_, height, width] = data.shape();
        let most = height.min(width).saturating_sub(1);
        for (key, value) in [("shift", self.shift), ("crop_padding", self.crop_padding)] {
            if value as usize > most {
                let field = format!("data.augment.{key}");
                let expected = format!("0 to {most}, for images of {height} x {width} pixels");
                return Err(DataError::mismatch(field, value, expected));
            }
        }
        Ok(())
    }
}

/// Rows of a dataset as one epoch shows them.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a Dataset,
    augment: Augment,
    seed: u64,
    epoch: u64,
}

impl<'a> View<'a> {
    /// What `epoch`, counted from 0, shows under a seed.
    pub fn new(data: &'a Dataset, augment: Augment, seed: u64, epoch: u64) -> Self {
        Self { data, augment, seed, epoch }
    }

    /// The rows as they are.
    pub fn plain(data: &'a Dataset) -> Self {
        Self::new(data, Augment::default(), 0, 0)
    }

    /// Elements per row.
    pub fn width(&self) -> usize {
        self.data.width()
    }

    /// The bytes of these rows, one after the other.
    pub fn gather(&self, rows: &[u32]) -> Bytes {
        if self.augment.is_none() {
            return self.data.gather(rows);
        }
        request_rows(rows.len() * self.width(), |bytes| self.add_moved(rows, bytes))
    }

    /// These rows as the student sees them: each byte times `rescale_factor`, `[rows, width]`.
    pub fn gather_f32(&self, rows: &[u32], rescale_factor: f64) -> Vec<f32> {
        if self.augment.is_none() {
            return self.data.gather_f32(rows, rescale_factor);
        }
        let mut bytes = Vec::new();
        self.add_moved(rows, &mut bytes);
        rescale(&bytes, rescale_factor).collect()
    }

    fn add_moved(&self, rows: &[u32], bytes: &mut Vec<u8>) {
        let (width, start) = (self.data.width(), bytes.len());
        bytes.resize(start + rows.len() * width, 0);
        for (row, out) in rows.iter().zip(bytes[start..].chunks_exact_mut(width.max(1))) {
            self.draw(*row).apply(self.data.shape(), self.data.row(*row), out);
        }
    }

    /// What is done to a row.
    fn draw(&self, row: u32) -> Move {
        let mut random = Philox::new(self.seed, random::augment(self.epoch));
        random.seek(u64::from(row) * WORDS_PER_ROW);
        let most = self.augment.most();
        let mut offset =
            || random.below(most.saturating_mul(2).saturating_add(1)) as isize - most as isize;
        let (down, right) = (offset(), offset());
        let flip = random.next_u32() >> 31 == 1;
        Move { down, right, flip: flip && self.augment.flip }
    }
}

/// What is done to an image: it is mirrored, then moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    /// Pixels.
    down: isize,
    /// Pixels.
    right: isize,
    /// Whether left and right are swapped.
    flip: bool,
}

impl Move {
    /// Writes what becomes of `image` to `out`, which is all zeros.
    fn apply(&self, shape: [usize; 3], image: &[u8], out: &mut [u8]) {
        let [_, height, width] = shape;
        let lines = Overlap::new(self.down, height);
        let pixels = Overlap::new(self.right, width);
        let planes = image.chunks_exact(height * width).zip(out.chunks_exact_mut(height * width));
        for (from, to) in planes {
            for line in 0..lines.length {
                let from = &from[(lines.from + line) * width..][..width];
                let to = &mut to[(lines.to + line) * width..][..width];
                let to = &mut to[pixels.to..][..pixels.length];
                if self.flip {
                    let mirrored = from.iter().rev().skip(pixels.from);
                    to.iter_mut().zip(mirrored).for_each(|(to, from)| *to = *from);
                } else {
                    to.copy_from_slice(&from[pixels.from..][..pixels.length]);
                }
            }
        }
    }
}

/// Which part of a line is still there when it was moved, and where.
#[derive(Clone, Copy, Debug)]
struct Overlap {
    from: usize,
    to: usize,
    length: usize,
}

impl Overlap {
    fn new(by: isize, length: usize) -> Self {
        let distance = by.unsigned_abs().min(length);
        let (from, to) = if by < 0 { (distance, 0) } else { (0, distance) };
        Self { from, to, length: length - distance }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::data::images_for_tests as images;

    const BOTH: Augment = Augment { shift: 2, crop_padding: 0, flip: true };

    /// Pixel by pixel, from the definition.
    fn by_definition(shape: [usize; 3], image: &[u8], done: Move) -> Vec<u8> {
        let [channels, height, width] = shape.map(|size| size as isize);
        let mut out = Vec::new();
        for channel in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    let (y, x) = (y - done.down, x - done.right);
                    let x = if done.flip { width - 1 - x } else { x };
                    let inside = (0..height).contains(&y) && (0..width).contains(&x);
                    let at = (channel * height + y) * width + x;
                    out.push(if inside { image[at as usize] } else { 0 });
                }
            }
        }
        out
    }

    #[test]
    fn an_image_is_mirrored_and_then_moved() {
        let data = images(1, [2, 4, 5], 1);
        for down in -5..=5 {
            for right in -6..=6 {
                for flip in [false, true] {
                    let done = Move { down, right, flip };
                    let mut out = vec![0; data.width()];
                    done.apply(data.shape(), data.row(0), &mut out);
                    let expected = by_definition(data.shape(), data.row(0), done);
                    assert_eq!(out, expected, "{done:?}");
                }
            }
        }
    }

    #[test]
    fn a_view_depends_on_seed_epoch_and_row_only() {
        let data = images(50, [1, 7, 6], 5);
        let view = View::new(&data, BOTH, 3, 4);
        let all: Vec<u32> = (0..50).collect();
        let together = view.gather(&all);
        for row in [49, 0, 17] {
            let at = row as usize * data.width();
            assert_eq!(view.gather(&[row]), together[at..at + data.width()]);
        }
        let scaled = view.gather_f32(&[17], 0.5);
        let bytes = view.gather(&[17]);
        assert!(scaled.iter().zip(&bytes).all(|(x, byte)| *x == f32::from(*byte) * 0.5));
        assert_ne!(together, View::new(&data, BOTH, 3, 5).gather(&all));
        assert_ne!(together, View::new(&data, BOTH, 4, 4).gather(&all));
        assert_eq!(View::plain(&data).gather(&all), data.gather(&all));
        assert_eq!(View::plain(&data).gather_f32(&all, 0.1), data.gather_f32(&all, 0.1));
    }

    /// A fifth of the pairs agree by chance: 100 of 500, give or take 9.
    #[test]
    fn no_word_is_drawn_for_two_rows() {
        let data = images(1, [1, 8, 8], 1);
        let view = View::new(&data, BOTH, 3, 0);
        for apart in 1..4 {
            let right_and_down = |row: &u32| view.draw(*row).right == view.draw(row + apart).down;
            let equal = (0..500).filter(right_and_down).count();
            assert!((60..140).contains(&equal), "{apart} rows apart: {equal}");
        }
    }

    /// 25 places and 2 directions, each as often as the other: chi-squared over 49 degrees of freedom
    /// is above 85.4 once in 1,000 draws of a uniform distribution.
    #[test]
    fn every_place_and_direction_is_as_likely() {
        let data = images(1, [1, 8, 8], 1);
        let mut counts = [0_u32; 50];
        for row in 0..10_000 {
            let Move { down, right, flip } = View::new(&data, BOTH, 1, 0).draw(row);
            counts[((down + 2) * 10 + (right + 2) * 2 + isize::from(flip)) as usize] += 1;
        }
        let chi: f64 = counts.iter().map(|count| (f64::from(*count) - 200.0).powi(2) / 200.0).sum();
        assert!(chi < 85.4, "chi-squared {chi}: {counts:?}");
        let crop = Augment { crop_padding: 4, ..Augment::default() };
        let drawn = |row| View::new(&data, crop, 1, 0).draw(row);
        let furthest = (0..1000).map(|row| drawn(row).down.max(-drawn(row).right)).max();
        assert_eq!(furthest, Some(4));
        assert!((0..1000).all(|row| !drawn(row).flip));
    }

    #[test]
    fn a_distance_beyond_the_image_is_refused() {
        let data = images(1, [3, 8, 5], 1);
        assert!(Augment { shift: 4, ..BOTH }.check(&data).is_ok());
        let error = Augment { shift: 5, ..BOTH }.check(&data).unwrap_err().to_string();
        let expected = "data.augment.shift is 5, expected 0 to 4, for images of 8 x 5 pixels";
        assert_eq!(error, expected);
        let crop = Augment { crop_padding: u32::MAX, ..Augment::default() };
        let error = crop.check(&data).unwrap_err().to_string();
        assert!(error.starts_with("data.augment.crop_padding is 4294967295"), "{error}");
    }

    /// A training step takes about 10 ms. This takes a hundredth of that, and is given room for a
    /// slow machine and a build without optimisation.
    #[test]
    fn a_batch_costs_far_less_than_a_training_step() {
        let data = images(1000, [1, 28, 28], 10);
        let rows: Vec<u32> = (0..128).map(|row| row * 7).collect();
        let view = View::new(&data, BOTH, 1, 0);
        let best = (0..20).map(|_| {
            let start = Instant::now();
            assert_eq!(view.gather(&rows).len(), 128 * 784);
            start.elapsed()
        });
        let best = best.min().unwrap();
        assert!(best.as_millis() < 5, "{best:?}");
    }
}
