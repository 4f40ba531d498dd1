//! Every encoding trains a student; the run's folder holds what it should.

use std::fs;

use stillhouse_nn::Classifier;
use student_worker::{
    eval::{self, Bias},
    recipe::DataSection,
    run_folder::Existing,
};

use crate::support::{Bench, run};

fn embedded(bench: &Bench, more: &str) -> String {
    let model = bench.teacher(1);
    format!("[teacher]\nkind = \"embedded\"\nmodel = \"{}\"\n{more}", model.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_encoding_trains_a_student() {
    let bench = Bench::new();
    for (name, more) in [
        ("dense", ""),
        ("dense-bf16", "encoding = { kind = \"dense\", dtype = \"bf16\" }\nrequest_rows = 5"),
        ("top-k", "encoding = { kind = \"top_k\", k = 2 }"),
        ("sampled", "encoding = { kind = \"sampled\", draws = 50 }"),
        ("hidden", "encoding = { kind = \"hidden\" }"),
    ] {
        let recipe = bench.recipe(name, &embedded(&bench, more));
        let outcome = run(recipe, Existing::Refuse).await.unwrap();
        assert!(outcome.finished, "{name}");
        assert_eq!((outcome.steps, outcome.total_steps), (32, 32), "{name}");
        assert!(outcome.teacher.is_some(), "{name}");
        let folder = outcome.folder;
        for file in ["recipe.toml", "metrics.jsonl", "config.json", "report.md", "plot.svg"] {
            assert!(folder.join(file).is_file(), "{name}: {file}");
        }
        // The saved model is the one that was tested last.
        let data = DataSection { dir: Some(bench.path().into()), ..DataSection::default() };
        let figures = eval::run(&folder.clone().into(), &data, &Bias::default()).unwrap();
        assert_eq!(Some(figures.errors), outcome.test.map(|test| test.errors), "{name}");
        assert_eq!(Classifier::load(&folder).unwrap().classes(), 3);
    }
    // Exact encodings of the same labels give nearly the same student; draws do not.
    let distance = |a: &str, b: &str| distance(&bench, a, b);
    assert!(distance("dense", "hidden") < 1e-3, "{}", distance("dense", "hidden"));
    assert!(distance("dense", "dense-bf16") < 0.05, "{}", distance("dense", "dense-bf16"));
    assert!(distance("dense", "sampled") > distance("dense", "hidden"));
}

/// Largest difference in a logit on the test set.
fn distance(bench: &Bench, a: &str, b: &str) -> f32 {
    let images = fs::read(bench.path().join("t10k-images-idx3-ubyte")).unwrap();
    let input: Vec<f32> = images[16..].iter().map(|byte| f32::from(*byte) / 255.0).collect();
    let logits = |name: &str| {
        let model = Classifier::load(&bench.path().join("runs").join(name)).unwrap();
        model.infer(&input, 60).unwrap().logits
    };
    let (a, b) = (logits(a), logits(b));
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logits_are_asked_for_where_the_loss_compares_them() {
    let bench = Bench::new();
    let mut recipe = bench.recipe("mse", &embedded(&bench, ""));
    recipe.loss.divergence = stillhouse_nn::Divergence::LogitMse;
    assert!(run(recipe, Existing::Refuse).await.unwrap().finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draws_are_the_same_in_every_run() {
    let bench = Bench::new();
    let sampled = embedded(&bench, "encoding = { kind = \"sampled\", draws = 5 }");
    for name in ["one", "two"] {
        run(bench.recipe(name, &sampled), Existing::Refuse).await.unwrap();
    }
    assert_eq!(bench.weights("one"), bench.weights("two"));
}
