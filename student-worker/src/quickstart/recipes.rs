//! The three runs of the quickstart, as recipes.

use stillhouse_nn::{
    LossConfig, MlpConfig, ModelConfig, OptimizerConfig, ScheduleConfig, ScheduleKind,
};

use super::Quickstart;
use crate::recipe::{
    DataSection, LossSchedule, OutputSection, Recipe, TeacherSection, TrainSection,
    teacher::TeacherKind,
};

/// Teacher, student without, student with; each finds what it needs of those before it.
pub(super) fn all(asked: &Quickstart) -> [Recipe; 3] {
    let hard = student(asked, "hard-labels");
    let mut distilled = student(asked, "distilled");
    distilled.loss = LossConfig { alpha: 0.9, temperature: 4.0, ..LossConfig::default() };
    let mut section = TeacherSection::new(TeacherKind::Embedded);
    section.model = Some(asked.output.join("teacher"));
    distilled.teacher = Some(section);
    [teacher(asked), hard, distilled]
}

/// The architecture of Hinton et al. (2015), section 3, trained briefly on all rows.
fn teacher(asked: &Quickstart) -> Recipe {
    let mut model = MlpConfig::new(784, vec![1200, 1200], 10);
    (model.input_dropout, model.dropout) = (0.1, 0.3);
    let mut recipe = recipe(asked, "teacher", model);
    recipe.data.train_rows = asked.size.teacher_rows;
    recipe.train.epochs = asked.size.teacher_epochs;
    recipe
}

/// A tenth of the teacher's width. Both students take the same steps over the same rows in the
/// same order, from the same initial weights.
fn student(asked: &Quickstart, name: &str) -> Recipe {
    let mut recipe = recipe(asked, name, MlpConfig::new(784, vec![128, 128], 10));
    recipe.data.train_rows = Some(asked.size.student_rows);
    recipe.schedule.learning_rate = 3e-3;
    recipe.train.epochs = asked.size.student_epochs;
    recipe.train.batch_size = 50;
    recipe.train.eval_every = 5;
    recipe
}

fn recipe(asked: &Quickstart, name: &str, model: MlpConfig) -> Recipe {
    Recipe {
        name: name.to_owned(),
        seed: asked.seed,
        data: DataSection { dir: Some(asked.data.clone()), ..DataSection::default() },
        student: ModelConfig::Mlp(model),
        teacher: None,
        loss: LossConfig { alpha: 0.0, ..LossConfig::default() },
        loss_schedule: LossSchedule::default(),
        optimizer: OptimizerConfig::default(),
        schedule: ScheduleConfig { kind: ScheduleKind::Cosine, ..ScheduleConfig::default() },
        train: TrainSection { checkpoint_every_steps: 0, ..TrainSection::default() },
        output: OutputSection { dir: Some(asked.output.join(name)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{quickstart::Size, recipe::check};

    #[test]
    fn the_recipes_are_valid_and_the_students_differ_in_labels_only() {
        let asked = Quickstart {
            seed: 3,
            data: "d".into(),
            output: "o".into(),
            silent: true,
            size: Size::default(),
        };
        let [teacher, hard, distilled] = all(&asked);
        for recipe in [&teacher, &hard, &distilled] {
            check(recipe).unwrap();
        }
        let mut same = distilled.clone();
        same.name.clone_from(&hard.name);
        same.output = hard.output.clone();
        (same.teacher, same.loss) = (None, hard.loss);
        assert_eq!(same, hard);
    }
}
