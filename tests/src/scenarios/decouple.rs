//! `decouple`: what a teacher on another core leaves of the rate of plain training, by how many batches
//! are asked for ahead. The teacher has core 0 and keeps nothing, the student has core 1.

use std::time::Duration;

use stillhouse_nn::{MlpConfig, ModelConfig, ResNetConfig};

use super::{Figures, median, progress};
use crate::{
    models,
    process::{Teacher, UNCACHED, on_core},
    student::Student,
    turns::{Ratio, Runner, take_turns},
};

const BATCH: usize = 128;
const PREFETCH: [usize; 4] = [0, 1, 2, 4];
/// The one of them that must keep up, a recipe's default.
const AHEAD: usize = 4;
/// The least part of plain training's rate.
const LEAST: f64 = 0.95;
/// Epochs that nobody gets to the end of.
const ENDLESS: u32 = 10_000;
/// Before the first turn; the stall is of that time.
const WARM_UP: Duration = Duration::from_secs(8);

/// A student and its teacher, on MNIST's pixels.
struct Pair {
    name: &'static str,
    /// A forward pass of it takes half to two thirds of a step of the student.
    teacher: fn() -> ModelConfig,
    /// As a recipe has it.
    student: &'static str,
    /// Rows of an epoch.
    rows: usize,
    /// How long one trains before the next does: some steps.
    turn: Duration,
}

/// Residual networks, as in the figures that this is compared with (PaddlePaddle EDL).
const RESNET: Pair = Pair {
    name: "resnet",
    teacher: || {
        ModelConfig::ResNet(ResNetConfig {
            num_channels: 1,
            image_size: 28,
            ..ResNetConfig::new(vec![2, 2, 2], 10)
        })
    },
    student: "{ model_type = \"cifar_resnet\", num_channels = 1, image_size = 28, depths = [1, 1, 1], \
              num_labels = 10 }",
    rows: 2_560,
    turn: Duration::from_millis(1_500),
};

/// The hard case: steps a tenth as long, each of which asks for as much as the residual network's.
const MLP: Pair = Pair {
    name: "mlp",
    teacher: || ModelConfig::Mlp(MlpConfig::new(784, vec![1200, 1200], 10)),
    student: "{ model_type = \"mlp\", input_size = 784, hidden_sizes = [800, 800], num_labels = 10 }",
    rows: 19_200,
    turn: Duration::from_millis(800),
};

pub(super) fn run(seconds: Option<f64>, part: Option<&str>) -> Figures {
    let seconds = seconds.unwrap_or(60.0);
    let mut figures = Figures::default();
    for pair in [RESNET, MLP].iter().filter(|pair| part.is_none_or(|part| part == pair.name)) {
        let Ratio { value, error } = measure(pair, seconds, &mut figures);
        let name = pair.name;
        let what = format!(
            "{name}: the student runs at {value:.3} +- {error:.3} of plain training, less than {LEAST}"
        );
        figures.require(value >= LEAST, what);
    }
    let none = figures.is_empty();
    figures.require(!none, format!("no part {part:?}; there are: resnet, mlp"));
    figures
}

/// What a row of a forward pass has taken so far.
fn seconds_of_a_row(teacher: &Teacher) -> f64 {
    teacher.metric("stillhouse_teacher_forward_seconds_sum")
        / teacher.metric("stillhouse_teacher_forward_rows_total")
}

/// Trains a student with hard labels only and others with the teacher's, in turns; the rate with
/// [`AHEAD`] batches ahead, of plain training's.
fn measure(pair: &Pair, seconds: f64, figures: &mut Figures) -> Ratio {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("teacher");
    std::fs::create_dir(&model).unwrap();
    models::write(&model, (pair.teacher)(), 1);
    let plain = Teacher::command("127.0.0.1:0".parse().unwrap(), &model, &UNCACHED);

    // None: hard labels only, first and once more last. What the two differ by is the machine's doing; the
    // others are compared with the mean of both.
    let kinds: Vec<Option<usize>> =
        [None].into_iter().chain(PREFETCH.map(Some)).chain([None]).collect();
    let start = |at: usize, kind: Option<usize>| {
        progress(&format!("decouple: {}, start of {kind:?}", pair.name));
        let teacher = kind.map(|_| Teacher::spawn(on_core(0, &plain)));
        let labels = match (&teacher, kind) {
            (Some(teacher), Some(prefetch)) => format!(
                "loss = {{ alpha = 0.9, temperature = 4.0 }}\n{}prefetch = {prefetch}\n",
                teacher.section()
            ),
            _ => "loss = { alpha = 0.0 }\n".to_owned(),
        };
        let sections = format!(
            "student = {}\n{labels}\
             [train]\nepochs = {ENDLESS}\nbatch_size = {BATCH}\neval_every = {ENDLESS}\n\
             checkpoint_every_steps = 0\n",
            pair.student
        );
        let student = Student::new(folder.path(), &at.to_string(), pair.rows, &sections);
        let runner = Runner::start(1, student, teacher, (WARM_UP, 1));
        // Now: when it is stopped, a forward pass may be, too, and would have taken all that time.
        let forward = runner.teacher().map(seconds_of_a_row);
        runner.stop();
        (runner, forward)
    };
    let (mut runners, forwards): (Vec<Runner>, Vec<Option<f64>>) =
        kinds.iter().enumerate().map(|(at, kind)| start(at, *kind)).unzip();
    let forward = median(&forwards.into_iter().flatten().collect::<Vec<f64>>());
    let rounds = (seconds / pair.turn.as_secs_f64()).ceil().max(2.0) as usize;
    take_turns(&mut runners, pair.turn, rounds, |round| {
        progress(&format!("decouple: {}, round {round} of {rounds}", pair.name));
    });
    progress("");

    let (first, last) = (&runners[0], &runners[runners.len() - 1]);
    let plain = first.rate() * BATCH as f64;
    let mut add = |name: &str, value: f64| figures.add(format!("{}_{name}", pair.name), value);
    add("plain_rows_per_second", plain);
    add("plain_stolen_fraction", first.stolen_fraction());
    add("teacher_over_student_time_of_a_row", forward * plain);
    let mut ahead = Ratio { value: f64::NAN, error: f64::NAN };
    for (kind, runner) in kinds.iter().zip(&runners).skip(1) {
        let (name, beside) = match kind {
            Some(prefetch) => (format!("prefetch_{prefetch}"), vec![first, last]),
            None => ("plain_again".to_owned(), vec![first]),
        };
        let ratio = runner.over(&beside);
        add(&format!("{name}_over_plain"), ratio.value);
        add(&format!("{name}_over_plain_standard_error"), ratio.error);
        add(&format!("{name}_stolen_fraction"), runner.stolen_fraction());
        if let Some(prefetch) = kind {
            add(&format!("{name}_stall_fraction"), runner.stall_fraction());
            if *prefetch == AHEAD {
                ahead = ratio;
            }
        }
    }
    figures.require(
        forward * plain <= 1.0,
        format!("{}: the teacher needs more time than the student", pair.name),
    );
    ahead
}
