//! Images that are moved and mirrored anew in every epoch.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use student_worker::run_folder::Existing;

use crate::support::{BINARY, Bench, endpoints, run, serve, text, worker};

const AUGMENT: &str = "data.augment={ shift = 1, flip = true }";

/// A run whose process was killed, with no time to save anything, goes on to the same bytes.
#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    let bench = Bench::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let teacher = runtime.block_on(serve(bench.teacher(1), 0));
    let sampled = "encoding = { kind = \"sampled\", draws = 9 }\nrequest_rows = 7";
    let section = endpoints(&[teacher.address()], sampled);
    let whole = bench.write_recipe("whole", &section);
    let set = ["--set", "train.epochs=150", "--set", AUGMENT];
    let train = |recipe, more: &[&str]| worker(&[&["train", recipe][..], &set, more].concat());
    assert!(train(text(&whole), &["--json"]).status.success());

    let cut = bench.write_recipe("cut", &section);
    let mut child = Command::new(BINARY)
        .args(["train", text(&cut)])
        .args(set)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("checkpoint at step 50")).unwrap().unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    assert!(!bench.path().join("runs/cut/model.safetensors").exists());

    let output = train(text(&cut), &["--resume"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(bench.weights("cut"), bench.weights("whole"));

    let other = ["train", text(&cut), "--set", "train.epochs=150", "--resume"];
    let output = worker(&other);
    assert_eq!(output.status.code(), Some(64));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("data.augment.flip is not set, but the run was started"), "{errors}");
    runtime.block_on(teacher.shutdown()).unwrap();
}

/// The teacher labels the view that the student trains on: how rows are cut into requests changes
/// neither, and neither does who is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_does_not_depend_on_the_request_that_it_is_in() {
    let bench = Bench::new();
    let embedded = "[teacher]\nkind = \"embedded\"\nmodel = \"teacher-1\"";
    for (name, more) in [("whole", ""), ("cut", "request_rows = 5"), ("plain", "")] {
        let mut recipe = bench.recipe(name, &format!("{embedded}\n{more}"));
        if name != "plain" {
            recipe.data.augment.shift = 1;
        }
        run(recipe, Existing::Refuse).await.unwrap();
    }
    assert_eq!(bench.weights("cut"), bench.weights("whole"));
    assert_ne!(bench.weights("plain"), bench.weights("whole"));
}
