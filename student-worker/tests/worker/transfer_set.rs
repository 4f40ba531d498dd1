//! Which rows a student is shown, and whether it sees their labels.

use std::fs;

use student_worker::{
    recipe::{self, Recipe},
    run_folder::{
        Existing,
        metrics::{self, Record},
    },
};

use crate::support::{Bench, run};

const TEACHER: &str = "[teacher]\nkind = \"embedded\"\nmodel = \"teacher-1\"";

fn taught(bench: &Bench, name: &str, set: &[&str]) -> Recipe {
    let set: Vec<String> = set.iter().map(|change| (*change).to_owned()).collect();
    recipe::load(&bench.write_recipe(name, TEACHER), &set).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_labels_a_student_learns_from_its_teacher_alone() {
    let bench = Bench::new();
    run(taught(&bench, "labelled", &["loss.alpha=1"]), Existing::Refuse).await.unwrap();
    fs::remove_file(bench.path().join("train-labels-idx1-ubyte")).unwrap();
    let recipe = taught(&bench, "bare", &["loss.alpha=1", "data.unlabelled=true"]);
    let outcome = run(recipe, Existing::Refuse).await.unwrap();
    // Labels without a weight decide nothing.
    assert_eq!(bench.weights("bare"), bench.weights("labelled"));
    assert_eq!(outcome.test.unwrap().rows, 60);
    let records = metrics::read(&bench.path().join("runs/bare/metrics.jsonl")).unwrap();
    let hard = |record: &Record| match record {
        Record::Step(step) => step.hard_loss,
        Record::Test(_) | Record::Validation(_) => None,
    };
    assert!(records.iter().all(|record| hard(record).is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_that_is_left_out_is_not_trained_on_and_is_tested() {
    let bench = Bench::new();
    for (name, set, steps) in [
        // Of 120 rows in three classes, in batches of 16, four times.
        ("all", &[][..], 32),
        ("without", &["data.leave_out=[1]"], 20),
        ("only", &["data.keep=[1]"], 12),
        ("part", &["data.fraction=0.25"], 8),
    ] {
        let outcome = run(taught(&bench, name, set), Existing::Refuse).await.unwrap();
        assert_eq!((outcome.steps, outcome.test.unwrap().rows), (steps, 60), "{name}");
    }
    let nothing = taught(&bench, "nothing", &["data.keep=[1]", "data.leave_out=[1]"]);
    let error = run(nothing, Existing::Refuse).await.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("expected classes that leave a row"), "{error}");
    assert!(!bench.path().join("runs/nothing").exists());
}
