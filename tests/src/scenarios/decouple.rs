//! `decouple`: what a teacher on another core leaves of the rate of plain training, by how many batches
//! are asked for ahead. The teacher has core 0 and keeps nothing, the student has core 1.

use std::process::Stdio;

use super::{Figures, median, progress};
use crate::{
    models,
    process::{Teacher, UNCACHED, on_core},
    student::{Student, finish},
};

/// Rounds over all students, interleaved.
const ROUNDS: usize = 7;
const ROWS: usize = 12_800;
const BATCH: usize = 128;
/// A forward pass of the teacher takes about two thirds of a step of the student.
const TEACHER: [usize; 2] = [1200, 1200];
const STUDENT: [usize; 2] = [800, 800];
const PREFETCH: [usize; 4] = [0, 1, 2, 4];

pub(super) fn run(seconds: Option<f64>) -> Figures {
    let seconds = seconds.unwrap_or(6.0);
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("teacher");
    std::fs::create_dir(&model).unwrap();
    models::write_mlp(&model, 784, &TEACHER, 10, 1);
    let plain = Teacher::command("127.0.0.1:0".parse().unwrap(), &model, &UNCACHED);
    let teacher = Teacher::spawn(on_core(0, &plain));

    // None: hard labels only.
    let kinds: Vec<Option<usize>> = [None].into_iter().chain(PREFETCH.map(Some)).collect();
    let mut rates = vec![Vec::new(); kinds.len()];
    let mut stalls = vec![Vec::new(); kinds.len()];
    let epochs = (seconds * 10_000.0 / ROWS as f64).ceil();
    for round in 0..ROUNDS {
        for (at, kind) in kinds.iter().enumerate() {
            progress(&format!("decouple: round {} of {ROUNDS}, {kind:?}", round + 1));
            let labels = match kind {
                None => "loss = { alpha = 0.0 }\n".to_owned(),
                Some(prefetch) => format!(
                    "loss = {{ alpha = 0.9, temperature = 4.0 }}\n{}prefetch = {prefetch}\n",
                    teacher.section()
                ),
            };
            let sections = format!(
                "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = {STUDENT:?}, \
                 num_labels = 10 }}\n{labels}\
                 [train]\nepochs = {epochs}\nbatch_size = {BATCH}\neval_every = {epochs}\n"
            );
            let student = Student::new(folder.path(), &format!("{at}-{round}"), ROWS, &sections);
            let mut command = on_core(1, &student.command(&[]));
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let outcome = finish(command.spawn().expect("taskset runs"));
            rates[at].push(outcome["examples_per_second"].as_f64().unwrap());
            stalls[at].push(outcome["stall_fraction"].as_f64().unwrap());
        }
    }
    progress("");
    let mut figures = Figures::default();
    let forward = teacher.metric("stillhouse_teacher_forward_seconds_sum")
        / teacher.metric("stillhouse_teacher_forward_rows_total");
    let plain = median(&rates[0]);
    figures.add("plain_rows_per_second", plain);
    figures.add("teacher_over_student_time_of_a_row", forward * plain);
    figures.require(forward * plain <= 1.0, "the teacher needs more time than the student");
    let mut best = 0.0_f64;
    for (at, kind) in kinds.iter().enumerate() {
        let Some(prefetch) = kind else { continue };
        // Of the same round: the machine is another's, too.
        let ratios: Vec<f64> =
            rates[at].iter().zip(&rates[0]).map(|(own, plain)| own / plain).collect();
        let ratio = median(&ratios);
        figures.add(format!("prefetch_{prefetch}_over_plain"), ratio);
        figures.add(format!("prefetch_{prefetch}_stall_fraction"), median(&stalls[at]));
        best = best.max(ratio);
    }
    figures.require(best >= 0.95, "the student runs at less than 0.95 of plain training");
    figures
}
