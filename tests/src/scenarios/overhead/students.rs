//! Examples per second of one student, by where its labels come from. Every process has one core:
//! the student core 1, a teacher process core 0.

use std::{env, path::Path, process::Command};

use serde_json::Value;
use stillhouse_nn::{
    Batch, Classifier, LossConfig, MlpConfig, ModelConfig, SoftTarget, Trainer, TrainerConfig,
};
use student_worker::data::{Fit, Sampler, Split, mnist};

use super::{
    super::{median, progress},
    Figures,
};
use crate::{
    models,
    process::{Teacher, UNCACHED, on_core},
    student::{self, Student},
};

/// The part that a child process of this binary runs.
pub(super) const IN_PROCESS: &str = "in_process";
/// Rounds over all sources, interleaved.
const ROUNDS: usize = 5;
const TEACHER: [usize; 2] = [1200, 1200];
const STUDENT: [usize; 2] = [800, 800];
const BATCH: usize = 128;
/// Rows of one epoch of the measured runs.
const ROWS: usize = 12_800;
/// Environment variable that tells a child process its teacher's folder.
const MODEL: &str = "STILLHOUSE_ACCEPTANCE_MODEL";

pub(super) fn measure(seconds: f64, figures: &mut Figures) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("teacher");
    std::fs::create_dir(&model).unwrap();
    models::write_mlp(&model, 784, &TEACHER, 10, 1);

    let sources = ["hard", IN_PROCESS, "embedded", "grpc"];
    let mut rates = vec![Vec::new(); sources.len()];
    let mut stalls = Vec::new();
    for round in 0..ROUNDS {
        for (source, rates) in sources.iter().zip(&mut rates) {
            progress(&format!("students: round {} of {ROUNDS}, {source}", round + 1));
            let name = format!("{source}-{round}");
            let outcome = match *source {
                IN_PROCESS => in_process(&model, seconds),
                "hard" => worker(folder.path(), &name, seconds, ""),
                "embedded" => {
                    let section = format!("[teacher]\nkind = \"embedded\"\nmodel = {model:?}\n");
                    worker(folder.path(), &name, seconds, &section)
                }
                _ => {
                    let listen = "127.0.0.1:0".parse().unwrap();
                    let plain = Teacher::command(listen, &model, &UNCACHED);
                    let teacher = Teacher::spawn(on_core(0, &plain));
                    let section = teacher.section();
                    let outcome = worker(folder.path(), &name, seconds, &section);
                    stalls.push(outcome["stall_fraction"].as_f64().unwrap());
                    outcome
                }
            };
            rates.push(outcome["examples_per_second"].as_f64().unwrap());
        }
    }
    progress("");
    let medians: Vec<f64> = rates.iter().map(|rates| median(rates)).collect();
    for (source, rate) in sources.iter().zip(&medians) {
        figures.add(format!("student_examples_per_second_{source}"), *rate);
    }
    figures.add("grpc_over_hard", medians[3] / medians[0]);
    figures.add("grpc_over_in_process", medians[3] / medians[1]);
    figures.add("grpc_stall_fraction", median(&stalls));
}

/// A `student-worker train` for about `seconds`, on core 1.
fn worker(folder: &Path, name: &str, seconds: f64, teacher: &str) -> Value {
    let alpha = if teacher.is_empty() { 0.0 } else { 0.9 };
    // About 6,000 rows a second and core; what counts is that every source does the same steps.
    let epochs = (seconds * 6000.0 / ROWS as f64).ceil();
    let sections = format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = {STUDENT:?}, num_labels = 10 }}\n\
         loss = {{ alpha = {alpha:?}, temperature = 4.0 }}\n{teacher}\
         [train]\nepochs = {epochs}\nbatch_size = {BATCH}\neval_every = {epochs}\n"
    );
    let student = Student::new(folder, name, ROWS, &sections);
    output(on_core(1, &student.command(&[])))
}

/// The in-process teacher: a child process of this binary, on core 1.
fn in_process(model: &Path, seconds: f64) -> Value {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["overhead", "--part", IN_PROCESS, "--seconds", &seconds.to_string()]);
    let mut command = on_core(1, &command);
    command.env(MODEL, model);
    output(command)
}

fn output(mut command: Command) -> Value {
    let output = command.output().expect("taskset runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Trains with logits of a teacher in this process, computed for each batch when it is needed.
pub(super) fn in_process_part(seconds: f64, figures: &mut Figures) {
    let teacher = Classifier::load(Path::new(&env::var(MODEL).unwrap())).unwrap();
    let fit = Fit { width: 784, image_shape: None, classes: 10 };
    let data = mnist::Files::find(&student::mnist(), Split::Train).unwrap().read(&fit).unwrap();
    let mut sampler = Sampler::new(5, ROWS, BATCH).unwrap();
    let model = ModelConfig::Mlp(MlpConfig::new(784, STUDENT.to_vec(), 10));
    let mut trainer = Trainer::new(TrainerConfig::new(model, u64::MAX)).unwrap();
    let loss = LossConfig { alpha: 0.9, temperature: 4.0, ..LossConfig::default() };

    let start = std::time::Instant::now();
    let mut examples = 0;
    for step in 0.. {
        if start.elapsed().as_secs_f64() > seconds {
            break;
        }
        let batch = sampler.batch(step);
        let input = data.gather_f32(&batch.rows, teacher.rescale_factor());
        let hard = data.gather_labels(&batch.rows);
        let rows = batch.rows.len();
        let soft = SoftTarget::Logits(teacher.infer(&input, rows).unwrap().logits);
        let batch = Batch { input: &input, rows, hard: hard.as_deref(), soft: Some(&soft) };
        trainer.step(&batch, &loss).unwrap();
        examples += rows;
    }
    figures.add("examples_per_second", examples as f64 / start.elapsed().as_secs_f64());
}
