//! A recipe: everything that decides how a student is trained, as one TOML file.
//!
//! * [`Recipe`] and its sections: the typed form, with defaults.
//! * [`load`]: file + `--set` overrides, unknown keys refused, paths resolved, values validated.
//! * [`teacher`]: the section about the teacher.
//! * [`identity`]: the part that decides the trained weights, which a resumed run must share.

mod data;
pub mod identity;
mod load;
mod loss_schedule;
pub(crate) mod loss_weights;
mod sections;
pub(crate) mod strict;
pub mod teacher;
pub(crate) mod validate;

pub use load::{RecipeError, check, from_table, load};
pub(crate) use load::{read, resolve, resolve_credentials};
pub(crate) use loss_schedule::hard_only;
pub use loss_schedule::{Change, LossSchedule, Step};
pub use sections::{DataFormat, DataSection, OutputSection, Recipe, TrainSection};
pub use teacher::TeacherSection;
pub use validate::Invalid;
pub(crate) use validate::check_name;

/// A recipe without a teacher, for tests.
#[cfg(test)]
pub(crate) fn recipe_for_tests() -> Recipe {
    use stillhouse_nn::{LossConfig, MlpConfig, ModelConfig, OptimizerConfig, ScheduleConfig};

    Recipe {
        name: "a".into(),
        seed: 1,
        data: DataSection::default(),
        student: ModelConfig::Mlp(MlpConfig::new(4, vec![3], 2)),
        teacher: None,
        loss: LossConfig::default(),
        loss_schedule: LossSchedule::default(),
        optimizer: OptimizerConfig::default(),
        schedule: ScheduleConfig::default(),
        train: TrainSection::default(),
        output: OutputSection::default(),
    }
}
