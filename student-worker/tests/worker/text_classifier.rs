//! Classifiers of texts: a teacher is trained, served and distilled, over gRPC.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use stillhouse_nn::{Philox, TextModel, TokenBatch};
use student_worker::{
    progress::{Event, Observer, Silent},
    run_folder::{
        Existing,
        metrics::{StepRecord, ValidationRecord},
    },
    text::{self, recipe::TextRecipe},
};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::support::{StopAt, run_text, section, serve, text_records};

const STEPS: u64 = 60;

fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/words/tokenizer.json")
}

/// Sentences that praise a film or do not.
fn sentences(count: usize, seed: u64) -> String {
    let mut rng = Philox::new(seed, 40);
    let mut text = "id\tsentence\tlabel\n".to_owned();
    for id in 0..count {
        let positive = rng.below(2) == 1;
        let word = [["bad", "dull"], ["good", "fine"]][usize::from(positive)];
        let word = word[rng.below(2) as usize];
        let subject = ["film", "plot", "actor"][rng.below(3) as usize];
        let verb = ["is", "was"][rng.below(2) as usize];
        let end = ["", " but a film", " and a very good actor is with the plot"];
        let end = end[rng.below(3) as usize];
        let very = if rng.below(2) == 1 { "very " } else { "" };
        let label = ["negative", "positive"][usize::from(positive)];
        writeln!(text, "{id}\tthe {subject} {verb} {very}{word}{end}\t{label}").unwrap();
    }
    text
}

/// A folder with data, architectures and room for runs.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("train.tsv"), sentences(600, 1)).unwrap();
        fs::write(folder.path().join("dev.tsv"), sentences(150, 2)).unwrap();
        let labels = r#""id2label": {"0": "negative", "1": "positive"}, "initializer_range": 0.1,
            "vocab_size": 20, "max_position_embeddings": 16"#;
        for (file, keys) in [
            (
                "teacher.json",
                r#""model_type": "bert", "hidden_size": 32, "intermediate_size": 64,
                   "num_hidden_layers": 2, "num_attention_heads": 4"#,
            ),
            (
                "student.json",
                r#""model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_layers": 1,
                   "n_heads": 2, "seq_classif_dropout": 0.1"#,
            ),
        ] {
            fs::write(folder.path().join(file), format!("{{{keys}, {labels}}}")).unwrap();
        }
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run_path(&self, name: &str) -> PathBuf {
        self.path().join("runs").join(name)
    }

    fn table(&self, name: &str, student: &str, teacher: &str) -> toml::Table {
        let alpha = if teacher.is_empty() { 0.0 } else { 0.9 };
        let tokenizer = tokenizer();
        let text = format!(
            "name = \"{name}\"\nseed = 5\nstudent.config = \"{student}.json\"\nloss.alpha = {alpha}\n\
             loss.temperature = 2.0\nschedule.learning_rate = 0.005\noutput.dir = \"runs/{name}\"\n\
             [data]\nformat = \"tsv\"\ntrain_files = [\"train.tsv\"]\nvalidation_files = [\"dev.tsv\"]\n\
             text_field = \"sentence\"\nlabel_field = \"label\"\ntokenizer = {tokenizer:?}\n\
             sequence_length = 12\n[train]\nsteps = {STEPS}\nbatch_tokens = 256\n\
             eval_every_steps = 20\ncheckpoint_every_steps = 7\n{teacher}\n"
        );
        text.parse().unwrap()
    }

    fn recipe(&self, name: &str, student: &str, teacher: &str) -> TextRecipe {
        text::recipe::from_table(self.table(name, student, teacher), self.path()).unwrap()
    }

    fn weights(&self, name: &str) -> Vec<u8> {
        fs::read(self.run_path(name).join("model.safetensors")).unwrap()
    }

    fn records(&self, name: &str) -> (Vec<StepRecord>, Vec<ValidationRecord>) {
        text_records(&self.run_path(name))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_is_trained_served_and_distilled() {
    let desk = Desk::new();
    let taught = run_text(desk.recipe("teacher", "teacher", ""), Existing::Refuse).await.unwrap();
    let last = taught.validation.unwrap();
    assert_eq!((last.labels, last.teacher_kl), (150, None));
    assert!(last.accuracy_percent().unwrap() > 97.0, "{last:?}");
    let report = fs::read_to_string(taught.report.unwrap()).unwrap();
    assert!(report.contains("| at the end | accuracy ") && report.contains(" over 150 texts |"));

    let teacher = serve(desk.run_path("teacher"), 0).await;
    let mut curves = vec![];
    for (name, encoding) in [
        ("dense", "kind = \"dense\""),
        ("hidden", "kind = \"hidden\""),
        ("top-k", "kind = \"top_k\", k = 1"),
        ("sampled", "kind = \"sampled\", draws = 20"),
    ] {
        let recipe = desk.recipe(name, "student", &section(&[teacher.address()], encoding));
        let outcome = run_text(recipe, Existing::Refuse).await.unwrap();
        let (steps, validations) = desk.records(name);
        let last = outcome.validation.unwrap();
        assert_eq!((validations.len(), validations.last()), (3, Some(&last)));
        assert!(last.accuracy_percent().unwrap() > 95.0, "{name}: {last:?}");
        let (first, last_kl) = (validations[0].teacher_kl.unwrap(), last.teacher_kl.unwrap());
        assert!(last_kl < first && last.teacher_agreement_percent.unwrap() > 95.0, "{name}");
        curves.push(steps.iter().map(|step| step.loss).collect::<Vec<f64>>());
    }
    let apart = |a: &[f64], b: &[f64]| {
        a.iter().zip(b).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max)
    };
    assert!(apart(&curves[1], &curves[0]) < 1e-4, "{}", apart(&curves[1], &curves[0]));
    // Of two classes the most probable one and the rest are all there is, in bf16.
    assert!(apart(&curves[2], &curves[0]) < 0.05, "{}", apart(&curves[2], &curves[0]));

    // What is validated is what is left in the folder.
    let student = TextModel::load(&desk.run_path("dense")).unwrap();
    let ids = [2, 11, 6, 16, 9, 5, 3, 2, 11, 12, 17, 15, 3];
    let hidden = student.hidden(&TokenBatch { ids: &ids, lengths: &[7, 6] }, None).unwrap();
    let logits = student.packed_head().logits(&hidden).unwrap();
    // The film is very bad; the plot was fine.
    assert!(logits[0] > logits[1] && logits[3] > logits[2], "{logits:?}");
    teacher.shutdown().await.unwrap();
}

/// A part of the texts is the same for the same seed, has both classes, and is all that is learnt from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_the_texts_is_trained_on() {
    let desk = Desk::new();
    let recipe = |name: &str, fraction: f64, seed: u64| {
        let mut table = desk.table(name, "student", "");
        table.insert("seed".to_owned(), toml::Value::Integer(seed as i64));
        table["data"].as_table_mut().unwrap().insert("fraction".to_owned(), fraction.into());
        table["train"].as_table_mut().unwrap().insert("steps".to_owned(), 8.into());
        text::recipe::from_table(table, desk.path()).unwrap()
    };
    // Twelve of 600 texts are less than a step: all steps are alike but for the order.
    for (name, fraction, seed, texts) in [("part", 0.02, 5, 12), ("all", 1.0, 5, 600)] {
        let (_running, stop) = watch::channel(false);
        let seen = Arc::new(AtomicUsize::new(0));
        let observer = Box::new(Rows(Arc::clone(&seen)));
        text::run(recipe(name, fraction, seed), Existing::Refuse, observer, stop).await.unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), texts);
        let epochs = desk.records(name).0.last().unwrap().epoch;
        assert_eq!(epochs == 8, name == "part", "{epochs}");
    }
    run_text(recipe("again", 0.02, 5), Existing::Refuse).await.unwrap();
    run_text(recipe("other", 0.02, 6), Existing::Refuse).await.unwrap();
    assert_eq!(desk.weights("again"), desk.weights("part"));
    assert_ne!(desk.weights("other"), desk.weights("part"));
    let error =
        run_text(recipe("none", 0.0001, 5), Existing::Refuse).await.unwrap_err().to_string();
    let expected = "data.fraction is 0.0001; expected a part of 600 sequences that has one or more";
    assert!(error.contains(expected), "{error}");
}

/// Notes how many sequences there are.
struct Rows(Arc<AtomicUsize>);

impl Observer for Rows {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Started { rows, .. } = event {
            self.0.store(*rows, Ordering::Relaxed);
        }
    }
}

/// Dropout, mixed precision and all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_goes_on_to_the_same_bytes() {
    let desk = Desk::new();
    for precision in ["f32", "bf16"] {
        let recipe = |name: &str| {
            let mut table = desk.table(name, "student", "");
            let train = table["train"].as_table_mut().unwrap();
            train.insert("precision".to_owned(), precision.into());
            train.insert("micro_batch_tokens".to_owned(), 100.into());
            train.insert("steps".to_owned(), 20.into());
            text::recipe::from_table(table, desk.path()).unwrap()
        };
        let (whole, cut) = (format!("whole-{precision}"), format!("cut-{precision}"));
        run_text(recipe(&whole), Existing::Refuse).await.unwrap();
        for step in [3, 11] {
            let (stop, stopping) = watch::channel(false);
            let observer = Box::new(StopAt(stop, step));
            let outcome =
                text::run(recipe(&cut), Existing::Resume, observer, stopping).await.unwrap();
            assert_eq!((outcome.finished, outcome.steps), (false, step));
        }
        let (_running, stop) = watch::channel(false);
        text::run(recipe(&cut), Existing::Resume, Box::new(Silent), stop).await.unwrap();
        assert_eq!(desk.weights(&cut), desk.weights(&whole), "{precision}");
    }
    assert_ne!(desk.weights("whole-f32"), desk.weights("whole-bf16"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_by_name() {
    let desk = Desk::new();
    run_text(desk.recipe("teacher", "teacher", ""), Existing::Refuse).await.unwrap();
    // A student with other classes than its teacher.
    let three = r#"{"model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_layers": 1,
        "n_heads": 2, "vocab_size": 20, "max_position_embeddings": 16,
        "id2label": {"0": "negative", "1": "positive", "2": "neither"}}"#;
    fs::write(desk.path().join("three.json"), three).unwrap();
    let teacher = serve(desk.run_path("teacher"), 0).await;
    let labels = section(&[teacher.address()], "kind = \"dense\"");
    let error = run_text(desk.recipe("a", "three", &labels), Existing::Refuse)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("classes is 2, expected 3, the student's num_labels"), "{error}");

    // A language model among classifiers, on either side.
    let llama = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20,
        "max_position_embeddings": 16}"#;
    fs::write(desk.path().join("llama.json"), llama).unwrap();
    let error =
        run_text(desk.recipe("b", "llama", ""), Existing::Refuse).await.unwrap_err().to_string();
    assert!(error.contains("student: model_type") && error.contains("data.label_field"), "{error}");
    let mut table = desk.table("c", "llama", &labels);
    table["data"].as_table_mut().unwrap().remove("label_field");
    let recipe = text::recipe::from_table(table, desk.path()).unwrap();
    let error = run_text(recipe, Existing::Refuse).await.unwrap_err().to_string();
    assert!(error.contains("task is Classification, expected LanguageModel"), "{error}");
    teacher.shutdown().await.unwrap();

    // Two of three tokens would be the tokenizer's own.
    let mut table = desk.table("e", "student", "");
    table["data"].as_table_mut().unwrap().insert("sequence_length".to_owned(), 2.into());
    let recipe = text::recipe::from_table(table, desk.path()).unwrap();
    let error = run_text(recipe, Existing::Refuse).await.unwrap_err().to_string();
    assert!(error.contains("data.sequence_length is 2; expected 3 or more"), "{error}");

    // Keys that mean nothing here.
    for (key, value, expected) in [
        (
            "begin",
            "[CLS]",
            "data.begin: given is not accepted, expected absent beside data.label_field",
        ),
        (
            "on_long",
            "split",
            "data.on_long: split is not accepted, expected truncate, skip or error",
        ),
        ("format", "text", "data.text_field: given is not accepted"),
    ] {
        let mut table = desk.table("d", "student", "");
        table["data"].as_table_mut().unwrap().insert(key.to_owned(), value.into());
        let error = text::recipe::from_table(table, desk.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
