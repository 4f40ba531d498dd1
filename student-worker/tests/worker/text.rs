//! Students of a language model that others trained (`examples/models/stories260K`), over gRPC.

use std::{
    fs,
    path::{Path, PathBuf},
};

use stillhouse_nn::{TextModel, TokenBatch};
use student_worker::{
    run_folder::{
        Existing,
        metrics::{StepRecord, ValidationRecord},
    },
    text::{self, recipe::TextRecipe},
};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::support::{StopAt, own_port, run_text, section, serve, text_records};

const STEPS: usize = 12;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn stories() -> PathBuf {
    examples().join("models/stories260K")
}

/// A folder with text and room for runs.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read(examples().join("data/tinyshakespeare/input.txt")).unwrap();
        fs::write(folder.path().join("text"), &text[..12_000]).unwrap();
        let config = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 520, "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
        fs::write(folder.path().join("student.json"), config).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn recipe(&self, name: &str, teacher: &str, more: &str) -> TextRecipe {
        let alpha = if teacher.is_empty() { 0.0 } else { 0.8 };
        let tokenizer = stories();
        let text = format!(
            "name = \"{name}\"\nseed = 7\nstudent.config = \"student.json\"\nloss.alpha = {alpha}\n\
             loss.temperature = 1.5\nschedule.learning_rate = 0.003\noutput.dir = \"runs/{name}\"\n\
             {more}\n[data]\nformat = \"text\"\ntrain_files = [\"text\"]\nvalidation_fraction = 0.1\n\
             tokenizer = {tokenizer:?}\nsequence_length = 48\n[train]\nsteps = {STEPS}\n\
             batch_tokens = 320\nmicro_batch_tokens = 150\neval_every_steps = 6\n\
             checkpoint_every_steps = 5\nagreement_tokens = 200\n{teacher}\n"
        );
        text::recipe::from_table(text.parse().unwrap(), self.path()).unwrap()
    }

    fn weights(&self, name: &str) -> Vec<u8> {
        fs::read(self.path().join("runs").join(name).join("model.safetensors")).unwrap()
    }

    fn records(&self, name: &str) -> (Vec<StepRecord>, Vec<ValidationRecord>) {
        text_records(&self.path().join("runs").join(name))
    }
}

fn losses(steps: &[StepRecord]) -> Vec<f64> {
    steps.iter().map(|step| step.loss).collect()
}

/// Largest relative difference between two curves.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!((a.len(), b.len()), (STEPS, STEPS));
    a.iter().zip(b).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_states_train_as_dense_labels_do() {
    let desk = Desk::new();
    let teacher = serve(stories(), 0).await;
    let mut curves = vec![];
    for (name, encoding) in [
        ("dense", "kind = \"dense\""),
        ("logits", "kind = \"dense\", values = \"logits\""),
        ("hidden", "kind = \"hidden\""),
        ("hidden-bf16", "kind = \"hidden\", dtype = \"bf16\""),
        ("top-k", "kind = \"top_k\", k = 50"),
        ("sampled", "kind = \"sampled\", draws = 12"),
    ] {
        let recipe = desk.recipe(name, &section(&[teacher.address()], encoding), "");
        let outcome = run_text(recipe, Existing::Refuse).await.unwrap();
        assert!(outcome.finished && outcome.report.is_some(), "{name}");
        let (steps, validations) = desk.records(name);
        assert!(steps[STEPS - 1].loss < steps[0].loss, "{name}: it does not learn");
        // Whatever the labels travel as, the validation compares with the teacher itself.
        let last = validations.last().unwrap();
        assert!(last.teacher_kl.unwrap() > 0.0 && last.teacher_agreement_percent.is_some());
        assert_eq!((validations.len(), last.step), (2, STEPS as u64));
        curves.push(losses(&steps));
    }
    // The very labels that travel as dense f32 are made of hidden states in f32.
    assert_eq!(curves[2], curves[0]);
    assert_eq!(desk.weights("hidden"), desk.weights("dense"));
    assert!(apart(&curves[1], &curves[0]) < 1e-5, "{}", apart(&curves[1], &curves[0]));
    assert!(apart(&curves[3], &curves[0]) < 1e-2, "{}", apart(&curves[3], &curves[0]));
    // bf16 is not f32.
    assert!(apart(&curves[3], &curves[0]) > 1e-7);
    // The head was fetched once, and lies under its teacher's fingerprint.
    let cache = desk.path().join("runs/cache");
    let heads = fs::read_dir(cache)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("head-"));
    assert_eq!(heads.count(), 1);
    teacher.shutdown().await.unwrap();
}

/// Sequences go to both replicas, and what is drawn is drawn alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_train_to_the_bytes_of_one() {
    let desk = Desk::new();
    let first = serve(stories(), 0).await;
    let second = serve(stories(), 0).await;
    for (name, encoding) in [
        ("hidden", "kind = \"hidden\""),
        ("top-k", "kind = \"top_k\", k = 50"),
        ("sampled", "kind = \"sampled\", draws = 12"),
    ] {
        for (kind, addresses) in
            [("one", &[first.address()][..]), ("two", &[first.address(), second.address()])]
        {
            let recipe = desk.recipe(&format!("{name}-{kind}"), &section(addresses, encoding), "");
            run_text(recipe, Existing::Refuse).await.unwrap();
        }
        let weights = |kind: &str| desk.weights(&format!("{name}-{kind}"));
        assert!(weights("one") == weights("two"), "{name}");
    }
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_is_the_same_in_any_number_of_parts() {
    let desk = Desk::new();
    let model = stories();
    let teacher = format!(
        "[teacher]\nkind = \"embedded\"\nmodel = {model:?}\n\
                           encoding = {{ kind = \"hidden\" }}"
    );
    let mut curves = vec![];
    for micro in [320, 150, 48] {
        let mut recipe = desk.recipe(&format!("micro-{micro}"), &teacher, "");
        recipe.train.micro_batch_tokens = Some(micro);
        run_text(recipe, Existing::Refuse).await.unwrap();
        curves.push(losses(&desk.records(&format!("micro-{micro}")).0));
    }
    for curve in &curves[1..] {
        assert!(apart(curve, &curves[0]) < 1e-6, "{}", apart(curve, &curves[0]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_goes_on_to_the_same_bytes() {
    let desk = Desk::new();
    let teacher = serve(stories(), 0).await;
    let sampled = section(&[teacher.address()], "kind = \"sampled\", draws = 7");
    for (kind, labels, more) in [
        ("hard", "", ""),
        ("sampled", sampled.as_str(), ""),
        ("less-memory", "", "train.checkpoint_activations = true"),
    ] {
        let (whole, cut) = (format!("whole-{kind}"), format!("cut-{kind}"));
        let recipe = |name: &str| {
            let mut recipe = desk.recipe(name, labels, "");
            recipe.train.checkpoint_activations = !more.is_empty();
            recipe
        };
        run_text(recipe(&whole), Existing::Refuse).await.unwrap();
        for step in [2, 7] {
            let (stop, stopping) = watch::channel(false);
            let observer = Box::new(StopAt(stop, step));
            let outcome =
                text::run(recipe(&cut), Existing::Resume, observer, stopping).await.unwrap();
            assert!(!outcome.finished && outcome.steps == step, "{outcome:?}");
        }
        let outcome = run_text(recipe(&cut), Existing::Resume).await.unwrap();
        assert!(outcome.finished);
        assert_eq!(desk.weights(&cut), desk.weights(&whole), "{kind}");
        assert_eq!(losses(&desk.records(&cut).0), losses(&desk.records(&whole).0));
        // Trained: its outcome is told again, and nothing is asked.
        let again = run_text(recipe(&cut), Existing::Resume).await.unwrap();
        assert_eq!(again, outcome);
    }
    // Computed again in the backward pass or kept: the same bytes.
    assert_eq!(desk.weights("whole-less-memory"), desk.weights("whole-hard"));
    let mut other = desk.recipe("cut-hard", "", "");
    other.data.sequence_length = 32;
    let error = run_text(other, Existing::Resume).await.unwrap_err().to_string();
    let source = "belongs to another recipe";
    assert!(error.contains(source), "{error}");
    teacher.shutdown().await.unwrap();
}

/// By every divergence, on some steps or all; stopped and gone on with, to the same bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_student_learns_from_what_it_writes() {
    let desk = Desk::new();
    let teacher = serve(stories(), 0).await;
    let hidden = section(&[teacher.address()], "kind = \"hidden\"");
    let divergences =
        ["kind = \"forward_kl\"", "kind = \"reverse_kl\"", "kind = \"jensen_shannon\"\nbeta = 0.5"];
    for (number, divergence) in divergences.iter().enumerate() {
        for fraction in [0.5, 1.0] {
            let recipe = |name: &str| {
                let more = format!(
                    "on_policy = {{ fraction = {fraction}, max_new_tokens = 20, prompt_tokens = 10, \
                     top_p = 0.95 }}\nloss.divergence.{}",
                    divergence.replace('\n', "\nloss.divergence.")
                );
                let mut recipe = desk.recipe(name, &hidden, &more);
                // From some of the teacher's layers: its samples are words.
                recipe.student.config = None;
                recipe.student.layers_of = Some(stories());
                recipe.student.keep_layers = vec![0, 1, 3, 4];
                recipe.schedule.learning_rate = 1e-3;
                recipe.train.steps = 32;
                recipe.train.eval_every_steps = 16;
                recipe
            };
            let (whole, cut) =
                (format!("own-{number}-{fraction}"), format!("cut-{number}-{fraction}"));
            run_text(recipe(&whole), Existing::Refuse).await.unwrap();
            let (steps, validations) = desk.records(&whole);
            let own = steps.iter().filter(|step| step.hard_loss.is_none()).count();
            assert!(if fraction == 1.0 { own == 32 } else { (8..25).contains(&own) }, "{own}");
            assert!(
                steps.iter().all(|step| step.loss.is_finite() && step.soft_loss.unwrap() > 0.0)
            );
            assert_eq!(validations.len(), 2);
            if fraction == 1.0 {
                // It comes nearer to the teacher on what it writes.
                let mean = |steps: &[StepRecord]| {
                    steps.iter().filter_map(|step| step.soft_loss).sum::<f64>() / steps.len() as f64
                };
                let (first, last) = (mean(&steps[..8]), mean(&steps[24..]));
                assert!(last < 0.9 * first, "{divergence}: {first} {last}");
            }

            let (stop, stopping) = watch::channel(false);
            let observer = Box::new(StopAt(stop, 4));
            let stopped =
                text::run(recipe(&cut), Existing::Resume, observer, stopping).await.unwrap();
            assert!(!stopped.finished);
            run_text(recipe(&cut), Existing::Resume).await.unwrap();
            assert_eq!(desk.weights(&cut), desk.weights(&whole), "{divergence} {fraction}");
        }
    }
    teacher.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_teacher_changes_nothing() {
    let desk = Desk::new();
    let calm = serve(stories(), 0).await;
    let labels = section(&[calm.address()], "kind = \"top_k\", k = 5");
    run_text(desk.recipe("calm", &labels, ""), Existing::Refuse).await.unwrap();
    calm.shutdown().await.unwrap();

    let (_held, address) = own_port();
    let port = address.port();
    let first = serve(stories(), port).await;
    let second = serve(stories(), 0).await;
    let labels = section(&[first.address(), second.address()], "kind = \"top_k\", k = 5");
    let recipe = desk.recipe("lost", &labels, "");
    let training = tokio::spawn(run_text(recipe, Existing::Refuse));
    tokio::time::sleep(std::time::Duration::from_millis(120)).await;
    first.shutdown().await.unwrap();
    let again = serve(stories(), port).await;
    let outcome = training.await.unwrap().unwrap();
    assert!(outcome.finished);
    assert_eq!(desk.weights("lost"), desk.weights("calm"));
    again.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_of_another_tokenizer_is_refused() {
    let desk = Desk::new();
    let other = desk.path().join("other");
    fs::create_dir(&other).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(stories().join(file), other.join(file)).unwrap();
    }
    let mut text = fs::read_to_string(other.join("tokenizer.json")).unwrap();
    text.push('\n');
    fs::write(other.join("tokenizer.json"), text).unwrap();
    let teacher = serve(other, 0).await;
    let labels = section(&[teacher.address()], "kind = \"hidden\"");
    let error = run_text(desk.recipe("refused", &labels, ""), Existing::Refuse).await.unwrap_err();
    let words = error.to_string();
    assert!(words.contains("tokenizer_sha256 is ") && words.contains("the student's"), "{words}");
    assert_eq!(error.exit_code(), 64);
    assert!(!desk.path().join("runs/refused").exists());
    teacher.shutdown().await.unwrap();
}

/// 4,096 labels of 512 words in f32 are more than 4 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_that_do_not_fit_in_a_message_are_refused_beforehand() {
    let desk = Desk::new();
    let mut settings = teacher_server::Settings::embedded(stories());
    settings.limits.max_message_bytes = 4 << 20;
    let teacher = teacher_server::Server::bind(settings).await.unwrap().spawn();
    let recipe = |encoding: &str| {
        let mut recipe = desk.recipe("large", &section(&[teacher.address()], encoding), "");
        recipe.train.batch_tokens = 4096;
        recipe.train.micro_batch_tokens = None;
        recipe
    };
    let error = run_text(recipe("kind = \"dense\""), Existing::Refuse).await.unwrap_err();
    let words = error.to_string();
    let expected = "limits.max_message_bytes is 4194304, expected ";
    assert!(words.contains(expected) && words.contains("train.micro_batch_tokens"), "{words}");
    assert_eq!(error.exit_code(), 64);
    assert!(!desk.path().join("runs/large").exists());
    assert!(run_text(recipe("kind = \"hidden\""), Existing::Refuse).await.unwrap().finished);
    teacher.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_student_of_some_layers_is_a_hugging_face_folder() {
    let desk = Desk::new();
    let model = stories();
    let mut recipe = desk.recipe("layers", "", "");
    recipe.student.config = None;
    recipe.student.layers_of = Some(model.clone());
    recipe.student.keep_layers = vec![0, 2, 4];
    recipe.data.tokenizer = None;
    run_text(recipe, Existing::Refuse).await.unwrap();
    let folder = desk.path().join("runs/layers");
    let trained = TextModel::load(&folder).unwrap();
    assert_eq!(
        trained.parameters(),
        512 * 64 + 64 + 3 * (2 * 64 + 64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 172)
    );
    assert_eq!(trained.tokenizer(), TextModel::load(&model).unwrap().tokenizer());
    let batch = TokenBatch { ids: &[1, 403, 407], lengths: &[3] };
    assert!(trained.hidden(&batch, None).unwrap().iter().all(|x| x.is_finite()));
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (config["num_hidden_layers"].as_u64(), config["vocab_size"].as_u64()),
        (Some(3), Some(512))
    );
    // It starts from the teacher's layers: better than one that starts from nothing.
    run_text(desk.recipe("scratch", "", ""), Existing::Refuse).await.unwrap();
    let first = |name: &str| desk.records(name).0[0].loss;
    assert!(first("layers") < first("scratch"), "{} {}", first("layers"), first("scratch"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_named_before_anything_is_written() {
    type Change = fn(&mut TextRecipe);
    let desk = Desk::new();
    let cases: [(Change, &str); 5] = [
        (
            |recipe| recipe.data.sequence_length = 65,
            "data.sequence_length is 65; expected 2 to 64, the student's max_position_embeddings",
        ),
        (
            |recipe| recipe.data.tokenizer = None,
            "data.tokenizer is no value; expected a tokenizer.json",
        ),
        (|recipe| recipe.data.shard = Some([500, 501]), "none in data.shard"),
        (
            |recipe| {
                recipe.student.config =
                    Some(examples().join("models/resnet20-cifar10/config.json"));
            },
            "model_type is \"cifar_resnet\"; supported: llama",
        ),
        (|recipe| recipe.data.train_files = vec!["/nowhere".into()], "/nowhere"),
    ];
    for (change, expected) in cases {
        let mut recipe = desk.recipe("faulty", "", "");
        change(&mut recipe);
        let error = run_text(recipe, Existing::Refuse).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code(), 64, "{error}");
        assert!(!desk.path().join("runs/faulty").exists());
    }
    let small = fs::read_to_string(desk.path().join("student.json")).unwrap().replace("520", "100");
    fs::write(desk.path().join("student.json"), small).unwrap();
    let error =
        run_text(desk.recipe("faulty", "", ""), Existing::Refuse).await.unwrap_err().to_string();
    assert!(error.contains("vocab_size is 100; expected 512 or more, the words of"), "{error}");
}
