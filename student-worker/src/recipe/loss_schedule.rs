//! How the loss changes from epoch to epoch.
//!
//! Values are constant within an epoch and depend on its number alone, so that a resumed run and one
//! that replays captured labels ask for the very same ones.

use serde::{Deserialize, Serialize};
use stillhouse_nn::LossConfig;

use super::Recipe;

/// When distillation begins, and how alpha and temperature change. Epochs are counted from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossSchedule {
    /// First epoch with soft labels. The ones before it learn from hard labels alone, at their
    /// `hard_weight` or 1.
    pub start_epoch: u32,
    /// Alpha over the epochs; absent: `loss.alpha` throughout.
    pub alpha: Option<Change>,
    /// Temperature over the epochs; absent: `loss.temperature` throughout.
    pub temperature: Option<Change>,
}

impl Default for LossSchedule {
    fn default() -> Self {
        Self { start_epoch: 1, alpha: None, temperature: None }
    }
}

/// A value over the epochs, which begins as what `[loss]` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Change {
    /// `from + (to - from) * x`, x going from 0 at `begin_epoch` to 1 at `end_epoch`.
    Linear {
        /// Value from `end_epoch` on.
        to: f64,
        /// Last epoch with the value that it begins with.
        begin_epoch: u32,
        /// First epoch with `to`.
        end_epoch: u32,
    },
    /// `from + (to - from) * (1 - cos(pi x)) / 2`.
    Cosine {
        /// Value from `end_epoch` on.
        to: f64,
        /// Last epoch with the value that it begins with.
        begin_epoch: u32,
        /// First epoch with `to`.
        end_epoch: u32,
    },
    /// A new value from an epoch on, until the next one.
    Steps {
        /// In order of epoch.
        steps: Vec<Step>,
    },
}

/// One step of [`Change::Steps`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// First epoch with the value.
    pub epoch: u32,
    /// The value.
    pub value: f64,
}

impl Change {
    /// The value in an epoch.
    pub fn at(&self, from: f64, epoch: u64) -> f64 {
        let progress = |begin: u32, end: u32| {
            let (begin, end, epoch) = (f64::from(begin), f64::from(end), epoch as f64);
            ((epoch - begin) / (end - begin)).clamp(0.0, 1.0)
        };
        let toward =
            |to: f64, share: f64| if share == 1.0 { to } else { from + (to - from) * share };
        match self {
            Self::Linear { to, begin_epoch, end_epoch } => {
                toward(*to, progress(*begin_epoch, *end_epoch))
            }
            Self::Cosine { to, begin_epoch, end_epoch } => {
                let x = progress(*begin_epoch, *end_epoch);
                let share =
                    if x == 1.0 { 1.0 } else { (1.0 - (std::f64::consts::PI * x).cos()) / 2.0 };
                toward(*to, share)
            }
            Self::Steps { steps } => {
                let reached = steps.iter().rev().find(|step| u64::from(step.epoch) <= epoch);
                reached.map_or(from, |step| step.value)
            }
        }
    }

    /// From what to what, and how: `8 to 2 (linear, epochs 2 to 4)`, or `8, 2 from epoch 4 on`.
    pub fn words(&self, from: f64) -> String {
        match self {
            Self::Linear { to, begin_epoch, end_epoch } => {
                format!("{from} to {to} (linear, epochs {begin_epoch} to {end_epoch})")
            }
            Self::Cosine { to, begin_epoch, end_epoch } => {
                format!("{from} to {to} (cosine, epochs {begin_epoch} to {end_epoch})")
            }
            Self::Steps { steps } => steps.iter().fold(from.to_string(), |words, step| {
                format!("{words}, {} from epoch {} on", step.value, step.epoch)
            }),
        }
    }

    /// The epochs at which it turns: between two of them it only rises, or only falls, or stays.
    fn turns(&self) -> Vec<u32> {
        match self {
            Self::Linear { begin_epoch, end_epoch, .. }
            | Self::Cosine { begin_epoch, end_epoch, .. } => vec![*begin_epoch, *end_epoch],
            Self::Steps { steps } => steps.iter().map(|step| step.epoch).collect(),
        }
    }

    /// Every value that it can come to beside the one it begins with, and its key within the table:
    /// others lie between.
    pub(super) fn values(&self) -> Vec<(String, f64)> {
        match self {
            Self::Linear { to, .. } | Self::Cosine { to, .. } => vec![("to".to_owned(), *to)],
            Self::Steps { steps } => {
                let key = |at| format!("steps[{at}].value");
                steps.iter().enumerate().map(|(at, step)| (key(at), step.value)).collect()
            }
        }
    }
}

/// A loss without its distillation term: cross-entropy with its weight where it has one of its own,
/// otherwise all of the loss.
pub(crate) fn hard_only(loss: &LossConfig) -> LossConfig {
    let hard_weight = Some(loss.hard_weight.unwrap_or(1.0));
    LossConfig { hard_weight, alpha: 0.0, soft_weight: None, ..*loss }
}

impl Recipe {
    /// Whether an epoch, counted from 1, learns from soft labels.
    pub fn distils(&self, epoch: u64) -> bool {
        self.teacher.is_some() && epoch >= u64::from(self.loss_schedule.start_epoch)
    }

    /// The loss of an epoch, counted from 1. Temperatures are rounded to 32 bits, which is what a
    /// teacher is asked for.
    pub fn loss_at(&self, epoch: u64) -> LossConfig {
        let LossSchedule { alpha, temperature, .. } = &self.loss_schedule;
        let base = self.loss;
        if !self.distils(epoch) {
            return hard_only(&base);
        }
        let at = |change: &Option<Change>, from: f64| {
            change.as_ref().map_or(from, |change| change.at(from, epoch))
        };
        let temperature = f64::from(at(temperature, base.temperature) as f32);
        LossConfig { alpha: at(alpha, base.alpha), temperature, ..base }
    }

    /// An epoch with a weight on hard labels, if any has one.
    pub(super) fn epoch_with_hard_labels(&self) -> Option<u32> {
        let weights = self.extreme_weights();
        weights.iter().find(|(_, (hard, _))| *hard > 0.0).map(|(epoch, _)| *epoch)
    }

    /// Epochs, and their weights on hard and on soft labels, among which are the largest and the
    /// smallest of the run: weights are monotone between the epochs at which something turns.
    pub(super) fn extreme_weights(&self) -> Vec<(u32, (f64, f64))> {
        let LossSchedule { start_epoch: start, alpha, .. } = &self.loss_schedule;
        let epochs = self.train.epochs;
        let mut turns = vec![1, start.saturating_sub(1), *start, epochs];
        turns.extend(alpha.iter().flat_map(Change::turns));
        turns.retain(|epoch| (1..=epochs).contains(epoch));
        turns.sort_unstable();
        turns.dedup();
        turns.into_iter().map(|epoch| (epoch, self.loss_at(epoch.into()).weights())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{
        recipe_for_tests,
        teacher::{TeacherKind, TeacherSection},
    };

    #[test]
    fn values_follow_their_formulas() {
        let linear = Change::Linear { to: 2.0, begin_epoch: 3, end_epoch: 7 };
        let cosine = Change::Cosine { to: 2.0, begin_epoch: 3, end_epoch: 7 };
        for (epoch, expected) in [(1, 10.0), (3, 10.0), (4, 8.0), (5, 6.0), (7, 2.0), (900, 2.0)] {
            assert!((linear.at(10.0, epoch) - expected).abs() < 1e-12, "{epoch}");
        }
        let quarter = 10.0 - 8.0 * (1.0 - (std::f64::consts::PI / 4.0).cos()) / 2.0;
        for (epoch, expected) in [(1, 10.0), (3, 10.0), (4, quarter), (5, 6.0), (7, 2.0), (8, 2.0)]
        {
            assert!((cosine.at(10.0, epoch) - expected).abs() < 1e-12, "{epoch}");
        }
        let step = |epoch, value| Step { epoch, value };
        let steps = Change::Steps { steps: vec![step(2, 5.0), step(4, 1.0)] };
        let found: Vec<f64> = (1..=5).map(|epoch| steps.at(10.0, epoch)).collect();
        assert_eq!(found, [10.0, 5.0, 5.0, 1.0, 1.0]);
    }

    #[test]
    fn the_epochs_of_the_extreme_weights_are_among_those_looked_at() {
        let mut recipe = recipe_for_tests();
        recipe.teacher = Some(TeacherSection::new(TeacherKind::Embedded));
        recipe.train.epochs = 9;
        let step = |epoch, value| Step { epoch, value };
        for (start_epoch, alpha) in [
            (1, None),
            (4, None),
            (3, Some(Change::Linear { to: 0.0, begin_epoch: 2, end_epoch: 5 })),
            (4, Some(Change::Cosine { to: 1.0, begin_epoch: 6, end_epoch: 40 })),
            (2, Some(Change::Steps { steps: vec![step(3, 1.0), step(7, 0.2), step(12, 0.0)] })),
        ] {
            recipe.loss_schedule = LossSchedule { start_epoch, alpha, temperature: None };
            let all: Vec<(f64, f64)> =
                (1..=9).map(|epoch| recipe.loss_at(epoch).weights()).collect();
            let some: Vec<(f64, f64)> =
                recipe.extreme_weights().into_iter().map(|(_, weights)| weights).collect();
            let extremes = |weights: &[(f64, f64)]| {
                let soft = || weights.iter().map(|weights| weights.1);
                let hard = || weights.iter().map(|weights| weights.0);
                let (min, max) = (f64::min, f64::max);
                [hard().reduce(min), hard().reduce(max), soft().reduce(min), soft().reduce(max)]
            };
            assert_eq!(extremes(&some), extremes(&all), "{:?}", recipe.loss_schedule);
        }
    }

    #[test]
    fn a_change_in_words() {
        let linear = Change::Linear { to: 2.0, begin_epoch: 2, end_epoch: 4 };
        assert_eq!(linear.words(8.0), "8 to 2 (linear, epochs 2 to 4)");
        let cosine = Change::Cosine { to: 0.5, begin_epoch: 1, end_epoch: 9 };
        assert_eq!(cosine.words(0.9), "0.9 to 0.5 (cosine, epochs 1 to 9)");
        let step = |epoch, value| Step { epoch, value };
        let steps = Change::Steps { steps: vec![step(4, 2.5), step(8, 1.0)] };
        assert_eq!(steps.words(8.0), "8, 2.5 from epoch 4 on, 1 from epoch 8 on");
    }

    #[test]
    fn the_loss_of_an_epoch() {
        let mut recipe = recipe_for_tests();
        recipe.teacher = Some(TeacherSection::new(TeacherKind::Embedded));
        recipe.loss = LossConfig { alpha: 1.0, temperature: 8.0, ..LossConfig::default() };
        assert_eq!(recipe.epoch_with_hard_labels(), None);
        recipe.loss_schedule = LossSchedule {
            start_epoch: 3,
            alpha: Some(Change::Linear { to: 0.5, begin_epoch: 3, end_epoch: 5 }),
            temperature: Some(Change::Steps { steps: vec![Step { epoch: 4, value: 2.7 }] }),
        };
        assert_eq!(recipe.epoch_with_hard_labels(), Some(1));
        assert_eq!((recipe.distils(2), recipe.distils(3)), (false, true));
        assert_eq!(recipe.loss_at(2).weights(), (1.0, 0.0));
        assert_eq!(recipe.loss_at(3).weights(), (0.0, 1.0));
        assert_eq!(
            (recipe.loss_at(4).alpha, recipe.loss_at(4).temperature),
            (0.75, f64::from(2.7f32))
        );
        assert_eq!(recipe.loss_at(9).alpha, 0.5);
        recipe.loss.hard_weight = Some(0.2);
        assert_eq!(recipe.loss_at(1).weights(), (0.2, 0.0));
        assert_eq!(recipe.loss_at(9).weights(), (0.2, 0.5));
    }
}
