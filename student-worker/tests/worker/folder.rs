//! What a run leaves in its folder, however it ends.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use student_worker::{
    quickstart::{self, Quickstart, Size},
    recipe::{self, RecipeError},
    run_folder::Existing,
    sweep,
    text::recipe::{from_table as text_recipe, is_text},
    train::Error,
};
use tokio::sync::watch;
use tonic::Code;

use crate::{
    fake_teacher::{Fake, Fault, serve_fake},
    support::{Bench, endpoints, run, run_watched, slow_step},
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tensorboard_finds_the_loss() {
    let bench = Bench::new();
    run(bench.recipe("hard", ""), Existing::Refuse).await.unwrap();
    let board = bench.path().join("runs/hard/tensorboard");
    let files: Vec<PathBuf> =
        fs::read_dir(board).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let name = file.file_name().unwrap().to_str().unwrap();
    // What TensorBoard looks for in a name.
    assert!(name.contains("tfevents"), "{name}");
    let bytes = fs::read(file).unwrap();
    let count = |tag: &[u8]| bytes.windows(tag.len()).filter(|window| *window == tag).count();
    assert_eq!((count(b"brain.Event:2"), count(b"train/loss")), (1, 32));
    assert_eq!(count(b"test/accuracy_percent"), 4);
}

/// Errors that come back on every try end the run, but not what it has learnt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_that_cannot_be_had_or_used_leave_a_checkpoint() {
    let bench = Bench::new();
    let address = serve_fake(Arc::new(Fake::new())).await;
    run(bench.recipe("whole", &endpoints(&[address], "")), Existing::Refuse).await.unwrap();
    let faults = [Fault::Error(Code::InvalidArgument, 0), Fault::Row, Fault::Garbage];
    for (fault, name) in faults.into_iter().zip(["refused", "row", "garbage"]) {
        let fake = Arc::new(Fake::new());
        let address = serve_fake(Arc::clone(&fake)).await;
        let section = endpoints(&[address], "");
        let teacher = Arc::clone(&fake);
        let at = move |step| {
            if step == 7 {
                // Said again, it is believed.
                let faults = std::iter::repeat_n(fault.clone(), 8);
                fake.faults.lock().unwrap().extend(faults);
            }
            slow_step();
        };
        let (_running, stop) = watch::channel(false);
        let recipe = bench.recipe(name, &section);
        let error = run_watched(recipe, Existing::Refuse, stop, at).await.unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        let Error::Broken(interrupted) = &error else { panic!("{error}") };
        assert!(interrupted.step >= 7, "{error}");
        let checkpoint = interrupted.checkpoint.display().to_string();
        assert!(error.to_string().ends_with(&checkpoint), "{error}");
        teacher.faults.lock().unwrap().clear();
        let outcome = run(bench.recipe(name, &section), Existing::Resume).await.unwrap();
        assert!(outcome.finished);
        assert_eq!(bench.weights(name), bench.weights("whole"));
    }
}

fn name_of(path: &Path) -> Result<String, RecipeError> {
    let table = fs::read_to_string(path).unwrap().parse().unwrap();
    if is_text(&table) {
        return text_recipe(table, path.parent().unwrap()).map(|recipe| recipe.name);
    }
    recipe::load(path, &[]).map(|recipe| recipe.name)
}

#[test]
fn every_recipe_of_the_repository_is_valid() {
    let mut names = Vec::new();
    for entry in fs::read_dir(repository().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name = if fs::read_to_string(&path).unwrap().contains("\n[[runs]]") {
                sweep::load(&path).map(|plan| plan.sweep.name)
            } else {
                name_of(&path)
            };
            names.push(name.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        }
    }
    assert!(names.len() >= 6, "{names:?}");
}

/// The object that `quickstart --json` prints is these figures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quickstart_has_the_figures_that_scripts_read() {
    let output = tempfile::tempdir().unwrap();
    let asked = Quickstart {
        seed: 1,
        data: repository().join("examples/data/mnist"),
        output: output.path().to_owned(),
        silent: true,
        size: Size {
            teacher_rows: Some(500),
            teacher_epochs: 1,
            student_rows: 100,
            student_epochs: 2,
        },
    };
    let (_running, stop) = watch::channel(false);
    let comparison = quickstart::run(&asked, stop).await.unwrap().unwrap();
    let figures = serde_json::to_value(&comparison.figures).unwrap();
    let figures = figures.as_object().unwrap();
    let mut keys: Vec<&str> = figures.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["distilled_errors", "hard_errors", "report", "seconds", "teacher_errors"]);
    for key in ["distilled_errors", "hard_errors", "teacher_errors"] {
        assert!((1..10_000).contains(&figures[key].as_u64().unwrap()), "{figures:?}");
    }
    assert!(figures["seconds"].as_f64().unwrap() > 0.0);
    let report = fs::read_to_string(figures["report"].as_str().unwrap()).unwrap();
    assert!(report.contains("on the same 100 rows"), "{report}");
    for name in ["teacher", "hard-labels", "distilled"] {
        let text = fs::read_to_string(output.path().join(name).join("recipe.toml")).unwrap();
        assert!(text.contains("dir = ") && text.contains(&format!("name = \"{name}\"")), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recipe_that_does_not_go_with_its_data_touches_no_folder() {
    let bench = Bench::new();
    let mut recipe = bench.recipe("long-warm-up", "");
    recipe.schedule.warmup_steps = 32;
    let error = run(recipe, Existing::Refuse).await.unwrap_err();
    assert_eq!(error.exit_code(), 64, "{error}");
    assert!(error.to_string().contains("schedule.warmup_steps is 32; expected 0 to 31"), "{error}");
    assert!(!bench.path().join("runs/long-warm-up").exists());
}
