//! `decouple`: what a teacher on another core leaves of the rate of plain training, by how many batches
//! are asked for ahead. The teacher has core 0 and keeps nothing, the student has core 1.

use std::process::Stdio;

use stillhouse_nn::{MlpConfig, ModelConfig, ResNetConfig};

use super::{Figures, median, progress};
use crate::{
    models,
    process::{Teacher, UNCACHED, on_core},
    student::{Student, finish},
};

const BATCH: usize = 128;
const PREFETCH: [usize; 4] = [0, 1, 2, 4];
/// The least part of plain training's rate.
const LEAST: f64 = 0.95;

/// A student and its teacher, on MNIST's pixels.
struct Pair {
    name: &'static str,
    /// A forward pass of it takes about two thirds of a step of the student.
    teacher: fn() -> ModelConfig,
    /// As a recipe has it.
    student: &'static str,
    /// Rows of an epoch, some seconds of the student's time.
    rows: usize,
    /// Rows a second that the student trains on, about.
    rate: f64,
    /// Rounds over all students, interleaved.
    rounds: usize,
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
    rate: 760.0,
    rounds: 5,
};

/// The hard case: steps of some milliseconds, of which each asks for as much as the residual network's.
const MLP: Pair = Pair {
    name: "mlp",
    teacher: || ModelConfig::Mlp(MlpConfig::new(784, vec![1200, 1200], 10)),
    student: "{ model_type = \"mlp\", input_size = 784, hidden_sizes = [800, 800], num_labels = 10 }",
    rows: 19_200,
    rate: 9_000.0,
    rounds: 7,
};

pub(super) fn run(seconds: Option<f64>, part: Option<&str>) -> Figures {
    let seconds = seconds.unwrap_or(6.0);
    let mut figures = Figures::default();
    for pair in [RESNET, MLP].iter().filter(|pair| part.is_none_or(|part| part == pair.name)) {
        let best = measure(pair, seconds, &mut figures);
        let name = pair.name;
        let what =
            format!("{name}: the student runs at {best:.3} of plain training, less than {LEAST}");
        figures.require(best >= LEAST, what);
    }
    let none = figures.is_empty();
    figures.require(!none, format!("no part {part:?}; there are: resnet, mlp"));
    figures
}

/// Trains one student at a time, with hard labels only and with the teacher's; the best rate with them,
/// of plain training's.
fn measure(pair: &Pair, seconds: f64, figures: &mut Figures) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("teacher");
    std::fs::create_dir(&model).unwrap();
    models::write(&model, (pair.teacher)(), 1);
    let plain = Teacher::command("127.0.0.1:0".parse().unwrap(), &model, &UNCACHED);
    let teacher = Teacher::spawn(on_core(0, &plain));

    // None: hard labels only, first and once more last. What the two differ by is the machine's doing.
    let kinds: Vec<Option<usize>> =
        [None].into_iter().chain(PREFETCH.map(Some)).chain([None]).collect();
    let mut rates = vec![Vec::new(); kinds.len()];
    let mut stalls = vec![Vec::new(); kinds.len()];
    // No rate is taken of the first: it has the start.
    let epochs = 1.0 + (seconds * pair.rate / pair.rows as f64).ceil();
    let rounds = pair.rounds;
    for round in 0..rounds {
        for (at, kind) in kinds.iter().enumerate() {
            progress(&format!(
                "decouple: {}, round {} of {rounds}, {kind:?}",
                pair.name,
                round + 1
            ));
            let labels = match kind {
                None => "loss = { alpha = 0.0 }\n".to_owned(),
                Some(prefetch) => format!(
                    "loss = {{ alpha = 0.9, temperature = 4.0 }}\n{}prefetch = {prefetch}\n",
                    teacher.section()
                ),
            };
            let sections = format!(
                "student = {}\n{labels}\
                 [train]\nepochs = {epochs}\nbatch_size = {BATCH}\neval_every = {epochs}\n",
                pair.student
            );
            let name = format!("{at}-{round}");
            let student = Student::new(folder.path(), &name, pair.rows, &sections);
            let mut command = on_core(1, &student.command(&[]));
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let outcome = finish(command.spawn().expect("taskset runs"));
            rates[at].push(student.rate_from(2));
            stalls[at].push(outcome["stall_fraction"].as_f64().unwrap());
        }
    }
    progress("");
    let forward = teacher.metric("stillhouse_teacher_forward_seconds_sum")
        / teacher.metric("stillhouse_teacher_forward_rows_total");
    let plain = median(&rates[0]);
    let mut add = |name: &str, value: f64| figures.add(format!("{}_{name}", pair.name), value);
    add("plain_rows_per_second", plain);
    add("teacher_over_student_time_of_a_row", forward * plain);
    let mut best = 0.0_f64;
    for (at, kind) in kinds.iter().enumerate().skip(1) {
        // Of the same round: the machine is another's, too.
        let ratios: Vec<f64> =
            rates[at].iter().zip(&rates[0]).map(|(own, plain)| own / plain).collect();
        let ratio = median(&ratios);
        let name = match kind {
            Some(prefetch) => format!("prefetch_{prefetch}"),
            None => "plain_again".to_owned(),
        };
        add(&format!("{name}_over_plain"), ratio);
        add(&format!("{name}_over_plain_least"), ratios.iter().copied().fold(f64::MAX, f64::min));
        add(&format!("{name}_over_plain_most"), ratios.iter().copied().fold(0.0, f64::max));
        if kind.is_some() {
            add(&format!("{name}_stall_fraction"), median(&stalls[at]));
            best = best.max(ratio);
        }
    }
    figures.require(
        forward * plain <= 1.0,
        format!("{}: the teacher needs more time than the student", pair.name),
    );
    best
}
