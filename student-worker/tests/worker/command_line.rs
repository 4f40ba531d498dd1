//! The binary: exit codes, and what goes to which output.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{BINARY, Bench, endpoints, own_port, refused, serve, text, worker};

#[test]
fn wrong_input_is_64_and_says_what_is_wrong() {
    let bench = Bench::new();
    let recipe = bench.write_recipe("hard", "");
    let recipe = text(&recipe);
    refused(&["train", "none.toml"], 64, "none.toml: cannot be read");
    refused(&["train", recipe, "--set", "train.epoch=1"], 64, "did you mean `train.epochs`?");
    refused(&["train", recipe, "--set", "train.epochs=0"], 64, "expected 1 to 1000000");
    refused(&["train", recipe, "--set", "data.dir=nowhere"], 64, "train-images-idx3-ubyte");
    refused(&["train", recipe, "--set", "student.num_labels=2"], 64, "label of row 2 is 2");
    refused(&["train", "--resum", recipe], 64, "--resume");
    refused(
        &["train", recipe, "--log", "student_worker=loud"],
        64,
        "--log (STILLHOUSE_LOG): \"stu",
    );
    refused(&["quickstart", "--data", text(bench.path()), "--output", "x"], 64, "input_size");
    let images = bench.path().join("train-images-idx3-ubyte");
    let mut bytes = fs::read(&images).unwrap();
    bytes.truncate(1000);
    fs::write(&images, bytes).unwrap();
    refused(&["train", recipe], 64, "body is 984 bytes, expected 1920 bytes");
}

#[test]
fn nobody_listening_changes_no_exit_code() {
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let closed = || Stdio::from(writer.try_clone().unwrap());
    let status = Command::new(BINARY)
        .args(["train", "none.toml", "--log", "debug"])
        .stdout(closed())
        .stderr(closed())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(64));
    let recipe = bench.write_recipe("unheard", "");
    let status = Command::new(BINARY)
        .args(["train", text(&recipe), "--log", "debug"])
        .stdout(Stdio::null())
        .stderr(closed())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_teacher_that_is_not_there_is_75() {
    let bench = Bench::new();
    let (_held, nobody) = own_port();
    let recipe = bench.write_recipe("gone", &endpoints(&[nobody], ""));
    let patience = "teacher.retry.max_elapsed_seconds=0.2";
    refused(&["train", text(&recipe), "--set", patience], 75, "no labels for");
}

#[test]
fn train_and_eval_print_one_object_for_scripts() {
    let bench = Bench::new();
    let recipe = bench.write_recipe("hard", "");
    let output = worker(&["train", text(&recipe), "--json"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["finished"], &outcome["steps"]), (&true.into(), &32.into()));
    let model = bench.path().join("runs/hard");
    let output = worker(&["eval", text(&model), "--data", text(bench.path()), "--json"]);
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures["errors"], outcome["test"]["errors"]);
    assert_eq!(figures["rows"], 60);
    refused(&["eval", text(bench.path()), "--data", text(bench.path())], 64, "config.json");
}

/// Starts the binary, tells it to stop once it has said something, and returns what it printed.
fn stopped_at(arguments: &[&str], words: &str) -> String {
    let mut child = Command::new(BINARY)
        .args(arguments)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains(words)).unwrap().unwrap();
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_is_said_of_a_stopped_run_is_true() {
    let bench = Bench::new();
    let (_held, nobody) = own_port();
    let recipe = bench.write_recipe("gone", &endpoints(&[nobody], ""));
    let said = stopped_at(&["train", text(&recipe), "--resume"], "teacher not connected");
    assert!(said.starts_with("gone: stopped before the first of 32 steps; there is"), "{said}");
    let mnist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/mnist");
    let output = bench.path().join("quickstart");
    let quickstart = ["quickstart", "--data", text(&mnist), "--output", text(&output)];
    let said = stopped_at(&quickstart, "teacher: 2345 steps over");
    assert!(said.starts_with("quickstart: stopped before"), "{said}");
}

/// A run that is told to stop leaves a checkpoint, and goes on to the same bytes.
#[test]
fn sigterm_is_143_with_a_checkpoint() {
    let bench = Bench::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let teacher = runtime.block_on(serve(bench.teacher(1), 0));
    let section = endpoints(&[teacher.address()], "");
    let whole = bench.write_recipe("whole", &section);
    let epochs = "train.epochs=200";
    assert!(worker(&["train", text(&whole), "--set", epochs, "--json"]).status.success());

    let cut = bench.write_recipe("cut", &section);
    let mut child = Command::new(BINARY)
        .args(["train", text(&cut), "--set", epochs])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("checkpoint at step 50")).unwrap().unwrap();
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!bench.path().join("runs/cut/model.safetensors").exists());

    let output = worker(&["train", text(&cut), "--set", epochs, "--resume"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(bench.weights("cut"), bench.weights("whole"));
    runtime.block_on(teacher.shutdown()).unwrap();
}
