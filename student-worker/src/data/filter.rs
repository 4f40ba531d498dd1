//! Which rows of a training set are trained on.

use super::{DataError, Dataset, subset};

/// What is taken of a training set, in this order. A student can learn a class that it was never
/// shown, from what its teacher says of the others (Hinton et al., "Distilling the knowledge in a
/// neural network", 2015, section 3): the test set is left whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Filter<'a> {
    /// Classes that are left out.
    pub leave_out: &'a [u32],
    /// The only classes that are kept; none: all.
    pub keep: Option<&'a [u32]>,
    /// Part of the rows, above 0 and at most 1: class-balanced, or uniform where rows have no labels.
    pub fraction: Option<f64>,
    /// Number of rows, class-balanced.
    pub rows: Option<usize>,
}

impl Filter<'_> {
    /// Takes the rows; a seed decides which, where only some are taken.
    ///
    /// # Errors
    /// If no row is left, fewer are there than are asked for, or a class is asked for of rows that
    /// have no labels.
    pub fn apply(&self, mut data: Dataset, seed: u64) -> Result<Dataset, DataError> {
        if !self.leave_out.is_empty() {
            data = by_class(&data, "leave_out", self.leave_out, false)?;
        }
        if let Some(keep) = self.keep {
            data = by_class(&data, "keep", keep, true)?;
        }
        if let Some(fraction) = self.fraction {
            let count = (fraction * data.len() as f64).round() as usize;
            if count == 0 {
                let expected = format!("a part of {} rows that has one or more", data.len());
                return Err(DataError::mismatch("data.fraction", fraction, expected));
            }
            let chosen = match data.labels() {
                Some(_) => subset::balanced(&data, count, seed)?,
                None => subset::uniform(&data, count, seed)?,
            };
            data = chosen;
        }
        if let Some(count) = self.rows {
            data = subset::balanced(&data, count, seed)?;
        }
        Ok(data)
    }
}

/// The rows of these classes, or of all others.
fn by_class(data: &Dataset, key: &str, classes: &[u32], keep: bool) -> Result<Dataset, DataError> {
    let refused = |expected: &str| {
        Err(DataError::mismatch(format!("data.{key}"), format!("{classes:?}"), expected))
    };
    let Some(labels) = data.labels() else {
        return refused("none where data.unlabelled = true");
    };
    let rows = (0..).zip(labels).filter(|(_, label)| classes.contains(label) == keep);
    let rows: Vec<u32> = rows.map(|(row, _)| row).collect();
    if rows.is_empty() {
        return refused("classes that leave a row to train on");
    }
    Ok(data.select(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{dataset_for_tests as sample, unlabelled_for_tests as unlabelled};

    fn labels(filter: Filter<'_>) -> Vec<u32> {
        filter.apply(sample(40, 2, 4), 1).unwrap().labels().unwrap().to_vec()
    }

    fn refused(filter: Filter<'_>, data: &Dataset) -> String {
        filter.apply(data.clone(), 1).unwrap_err().to_string()
    }

    #[test]
    fn classes_are_left_out_then_kept_then_a_part_is_taken() {
        let all = Filter::default();
        assert_eq!(all.apply(sample(40, 2, 4), 1).unwrap(), sample(40, 2, 4));
        let without = labels(Filter { leave_out: &[3], ..all });
        assert_eq!(without, [0, 1, 2].repeat(10));
        assert_eq!(labels(Filter { keep: Some(&[2, 1]), ..all }), [1, 2].repeat(10));
        assert_eq!(labels(Filter { keep: Some(&[2, 1]), leave_out: &[1], ..all }), [2; 10]);
        let mut part = labels(Filter { leave_out: &[0], fraction: Some(0.2), ..all });
        part.sort_unstable();
        assert_eq!(part, [1, 1, 2, 2, 3, 3]);
        assert_eq!(labels(Filter { rows: Some(4), ..all }).len(), 4);
        assert_eq!(labels(Filter { fraction: Some(1.0), ..all }), [0, 1, 2, 3].repeat(10));
    }

    #[test]
    fn a_filter_that_leaves_nothing_is_an_error() {
        let (all, data) = (Filter::default(), sample(40, 2, 4));
        let error = refused(Filter { leave_out: &[0, 1, 2, 3], ..all }, &data);
        let expected =
            "data.leave_out is [0, 1, 2, 3], expected classes that leave a row to train on";
        assert_eq!(error, expected);
        let error = refused(Filter { leave_out: &[1], keep: Some(&[1]), ..all }, &data);
        assert!(error.starts_with("data.keep is [1], expected classes that leave"), "{error}");
        let error = refused(Filter { fraction: Some(0.01), ..all }, &data);
        assert_eq!(error, "data.fraction is 0.01, expected a part of 40 rows that has one or more");
    }

    #[test]
    fn classes_of_unlabelled_rows_cannot_be_told_apart() {
        let (all, data) = (Filter::default(), unlabelled(&sample(40, 2, 4)));
        for (filter, key) in [
            (Filter { leave_out: &[1], ..all }, "data.leave_out"),
            (Filter { keep: Some(&[1]), ..all }, "data.keep"),
            (Filter { rows: Some(3), ..all }, "data.train_rows"),
        ] {
            let error = refused(filter, &data);
            assert!(error.starts_with(key) && error.contains("data.unlabelled = true"), "{error}");
        }
        let part = Filter { fraction: Some(0.25), ..all }.apply(data, 1).unwrap();
        assert_eq!(part.len(), 10);
    }
}
