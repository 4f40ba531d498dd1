//! `student-worker plan`: from a moment of student and teacher to what a recipe needs.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::process::{Command, Output};

use serde_json::Value;
use stillhouse_tests::{
    models,
    process::{Teacher, binary},
    student::Student,
};

fn plan(student: &Student, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("student-worker"));
    command.arg("plan").arg(student.recipe()).args(["--seconds", "1"]).args(arguments);
    command.output().unwrap()
}

#[test]
fn a_slow_teacher_is_needed_more_than_once_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("teacher");
    std::fs::create_dir(&model).unwrap();
    models::write_mlp(&model, 784, &[2000, 2000], 10, 1);
    let teacher = Teacher::start(&model, &[]);
    let student = "student = { model_type = \"mlp\", input_size = 784, hidden_sizes = [16], num_labels = 10 }\n";
    let sections = format!(
        "{student}loss = {{ alpha = 0.9, temperature = 4.0 }}\n{}[train]\nepochs = 3\nbatch_size = 64\n",
        teacher.section()
    );
    let recipe = Student::new(folder.path(), "planned", 6400, &sections);
    let left = || {
        let files = std::fs::read_dir(std::env::temp_dir()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap_or_default());
        names.filter(|name| name.starts_with("stillhouse-plan-")).collect::<Vec<_>>()
    };
    let before = left();
    let output = plan(&recipe, &["--json", "--students", "4"]);
    assert_eq!(left(), before);
    let needs: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let number = |key: &str| needs[key].as_f64().unwrap();
    let (own, teachers) = (number("student_per_second"), number("teacher_per_second"));
    assert!(own > 2.0 * teachers && teachers > 0.0, "{needs}");
    assert_eq!(number("teachers_own_rows"), (4.0 * own / teachers).ceil(), "{needs}");
    assert_eq!(number("teachers_same_rows"), (own / teachers).ceil(), "{needs}");
    assert_eq!(number("epoch_rows"), 6400.0, "{needs}");
    // While one batch is trained on, those behind it are on their way.
    let ahead = (number("request_latency_ms") / number("step_ms")).ceil() + 1.0;
    assert_eq!(number("prefetch"), ahead.clamp(1.0, 64.0), "{needs}");
    // Each later epoch saves one pass of all rows, and the student has room for their labels.
    let pass = 6400.0 / teachers;
    let saved = number("saved_seconds_per_epoch");
    assert!((saved / pass - 1.0).abs() < 1e-9, "{needs}");
    assert!(number("kept_bytes_needed") >= 6400.0 * 40.0, "{needs}");
    // Ten f32 and some bytes of each answer.
    assert!((40.0..60.0).contains(&number("bytes_per_label")), "{needs}");
    assert!(!folder.path().join("planned").exists(), "the run's folder is for the run");
    let text = String::from_utf8(plan(&recipe, &[]).stdout).unwrap();
    assert!(text.contains("teachers  ") && text.contains("prefetch  "), "{text}");

    let alone =
        Student::new(folder.path(), "alone", 6400, &format!("{student}loss = {{ alpha = 0.0 }}\n"));
    let output = plan(&alone, &[]);
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("teacher.kind: no [teacher]"), "{text}");
}
