//! `share`: what it saves that a row is computed once. The teacher has core 0, its students core 1.
//!
//! [`eight_students`] trains 8 students on the same rows, each in an order of its own, and compares
//! with one alone, before and after. [`second_epoch`] trains a student on labels that the teacher has all
//! cached, and that the student keeps or asks for in every epoch, and compares with hard labels only.

use std::{
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use super::{Figures, progress};
use crate::{
    models,
    process::{Teacher, on_core},
    student::{Student, finish_within},
    turns::{Ratio, Runner, take_turns},
};

const STUDENTS: usize = 8;
/// Rows of the epoch that students share: all, so that every seed has the same.
const ROWS: usize = 60_000;
/// Wide enough to be what everybody waits for.
const WIDE: [usize; 3] = [4000, 4000, 4000];

/// How long a student of the second part trains before the next does.
const TURN: Duration = Duration::from_millis(800);
/// Rows of its epochs: about a second of the student's time.
const SHORT: usize = 12_800;

/// The epoch that they are in before their first turn: past the one that brings the labels.
const SETTLED: u64 = 3;
const WARM_UP: Duration = Duration::from_secs(8);
/// Epochs that nobody gets to the end of.
const ENDLESS: u32 = 10_000;

/// Longest time of one run.
const PATIENCE: Duration = Duration::from_secs(600);

const FORWARD_ROWS: &str = "stillhouse_teacher_forward_rows_total";

pub(super) fn run(seconds: Option<f64>, part: Option<&str>) -> Figures {
    let mut figures = Figures::default();
    if part.is_none_or(|part| part == "students") {
        eight_students(&mut figures);
    }
    if part.is_none_or(|part| part == "second-epoch") {
        second_epoch(seconds.unwrap_or(60.0), &mut figures);
    }
    let none = figures.is_empty();
    figures.require(!none, format!("no part {part:?}; there are: students, second-epoch"));
    figures
}

fn teacher(folder: &Path, hidden: &[usize], arguments: &[&str]) -> Teacher {
    let model = folder.join("teacher");
    if !model.exists() {
        std::fs::create_dir(&model).unwrap();
        models::write_mlp(&model, 784, hidden, 10, 1);
    }
    let plain = Teacher::command("127.0.0.1:0".parse().unwrap(), &model, arguments);
    Teacher::spawn(on_core(0, &plain))
}

fn student(folder: &Path, name: &str, rows: usize, hidden: &[usize], rest: &str) -> Student {
    let sections = format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = {hidden:?}, \
         num_labels = 10 }}\n{rest}"
    );
    Student::new(folder, name, rows, &sections)
}

fn start(student: &Student, arguments: &[&str]) -> Child {
    let mut command = on_core(1, &student.command(arguments));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("taskset runs")
}

/// What students of one teacher came to.
struct Together {
    /// Rows a second that they say they trained on, summed up.
    rate: f64,
    /// Rows over the time from the first start to the last end, with all that a process begins and
    /// ends with.
    wall_rate: f64,
    forward_rows: f64,
}

/// Trains students of one fresh teacher at the same time.
fn together(students: usize) -> Together {
    let folder = tempfile::tempdir().unwrap();
    // Batches of the size that such a teacher is fastest at on one core.
    let batches = ["--set", "batching.max_batch_rows=256", "--set", "limits.max_rows=256"];
    let teacher = teacher(folder.path(), &WIDE, &batches);
    let rest = format!(
        "loss = {{ alpha = 0.9, temperature = 4.0 }}\n{}prefetch = 8\n\
         [train]\nepochs = 1\nbatch_size = 128\n",
        teacher.section()
    );
    let began = Instant::now();
    let running: Vec<Child> = (0..students)
        .map(|number| {
            let student = student(folder.path(), &format!("s{number}"), ROWS, &[32], &rest);
            start(&student, &["--set", &format!("seed={number}")])
        })
        .collect();
    let outcomes = running.into_iter().map(|child| finish_within(child, PATIENCE));
    let rate = outcomes.map(|outcome| outcome["examples_per_second"].as_f64().unwrap()).sum();
    let wall_rate = (students * ROWS) as f64 / began.elapsed().as_secs_f64();
    Together { rate, wall_rate, forward_rows: teacher.metric(FORWARD_ROWS) }
}

fn eight_students(figures: &mut Figures) {
    // One alone before and after, since the machine's speed drifts: the mean of both is the measure.
    progress("share: one student");
    let first = together(1);
    progress(&format!("share: {STUDENTS} students"));
    let all = together(STUDENTS);
    progress("share: one student again");
    let again = together(1);
    progress("");
    let alone = f64::midpoint(first.rate, again.rate);
    let alone_wall = f64::midpoint(first.wall_rate, again.wall_rate);
    figures.add("one_student_rows_per_second", first.rate);
    figures.add("one_student_again_rows_per_second", again.rate);
    figures.add(format!("{STUDENTS}_students_rows_per_second"), all.rate);
    figures.add("students_over_one", all.rate / alone);
    figures.add("students_over_one_with_start_and_end", all.wall_rate / alone_wall);
    figures.add("rows", ROWS);
    figures.add("forward_rows", all.forward_rows);
    figures.require(all.forward_rows <= ROWS as f64, "a row was run twice");
    figures.require(all.rate >= 7.0 * alone, "8 students are less than 7 times one");
}

fn second_epoch(seconds: f64, figures: &mut Figures) {
    let folder = tempfile::tempdir().unwrap();
    let teacher = teacher(folder.path(), &[1200, 1200], &[]);
    let train = |epochs: u32| {
        format!(
            "[train]\nepochs = {epochs}\nbatch_size = 128\neval_every = {epochs}\n\
             checkpoint_every_steps = 0\n"
        )
    };
    // As a recipe is that says nothing: the student keeps what its first epoch has brought.
    let loss = "loss = { alpha = 0.9, temperature = 4.0 }\n";
    let asking = format!("{loss}{}", teacher.section());
    let keeping = format!("{loss}{}", teacher.section().replace("kept_bytes = 0\n", ""));
    let width = [800, 800];
    let first = student(folder.path(), "first", SHORT, &width, &format!("{asking}{}", train(1)));
    finish_within(start(&first, &[]), PATIENCE);
    let forward = teacher.metric(FORWARD_ROWS);

    // Hard labels only, first and once more last: what the two differ by is the machine's doing. The others
    // are compared with the mean of both.
    let hard = "loss = { alpha = 0.0 }\n";
    let kinds = [
        ("hard", hard),
        ("kept", &keeping),
        ("cached_by_the_teacher", &asking),
        ("hard_again", hard),
    ];
    let begin = |(name, sections): &(&str, &str)| {
        progress(&format!("share: second epoch, start of {name}"));
        let sections = format!("{sections}{}", train(ENDLESS));
        let run = student(folder.path(), name, SHORT, &width, &sections);
        // The teacher is everybody's, and has nothing to do while all are stopped.
        let runner = Runner::start(1, run, None, (WARM_UP, SETTLED));
        runner.stop();
        runner
    };
    let mut runners: Vec<Runner> = kinds.iter().map(begin).collect();
    let rounds = (seconds / TURN.as_secs_f64()).ceil().max(2.0) as usize;
    take_turns(&mut runners, TURN, rounds, |round| {
        progress(&format!("share: second epoch, round {round} of {rounds}"));
    });
    progress("");

    let again = teacher.metric(FORWARD_ROWS) - forward;
    figures.add("hard_labels_rows_per_second", runners[0].rate() * 128.0);
    let both = [&runners[0], &runners[runners.len() - 1]];
    for ((name, sections), runner) in kinds.iter().zip(&runners).skip(1) {
        let beside = if *sections == hard { &both[..1] } else { &both[..] };
        let Ratio { value, error } = runner.over(beside);
        figures.add(format!("{name}_over_hard"), value);
        figures.add(format!("{name}_over_hard_standard_error"), error);
        figures.add(format!("{name}_stolen_fraction"), runner.stolen_fraction());
        figures.add(format!("{name}_stall_fraction"), runner.stall_fraction());
    }
    figures.add("forward_rows_after_the_first_epoch", again);
    figures.require(again == 0.0, "a cached row was run again");
    let Ratio { value, error } = runners[1].over(&both);
    let what =
        format!("with labels that it keeps a student has {value:.3} +- {error:.3} of its rate");
    figures.require(value >= 0.97, what);
}
