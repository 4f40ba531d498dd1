//! A teacher of several models: embedded or elsewhere, by either rule.

use std::sync::Arc;

use student_worker::{label_client::ClientError, run_folder::Existing, train::Error};
use teacher_server::{Server, Settings};
use tokio::sync::watch;

use crate::{
    fake_teacher::{Fake, serve_fake},
    support::{Bench, endpoints, run, run_watched, serve},
};

fn embedded(bench: &Bench, more: &str) -> String {
    let (a, b) = (bench.teacher(1), bench.teacher(2));
    format!(
        "[teacher]\nkind = \"embedded\"\nmodels = [\"{}\", \"{}\"]\n{more}",
        a.display(),
        b.display()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_with_an_embedded_ensemble_goes_on_to_the_same_bytes() {
    let bench = Bench::new();
    for rule in ["arithmetic", "geometric"] {
        let (whole, cut) = (format!("whole-{rule}"), format!("cut-{rule}"));
        let teacher = embedded(&bench, &format!("ensemble = \"{rule}\""));
        run(bench.recipe(&whole, &teacher), Existing::Refuse).await.unwrap();
        let (stop, stopping) = watch::channel(false);
        let at = move |step| {
            if step == 13 {
                stop.send_replace(true);
            }
        };
        let stopped = run_watched(bench.recipe(&cut, &teacher), Existing::Refuse, stopping, at);
        assert!(!stopped.await.unwrap().finished);
        assert!(run(bench.recipe(&cut, &teacher), Existing::Resume).await.unwrap().finished);
        assert_eq!(bench.weights(&cut), bench.weights(&whole), "{rule}");
    }
    // Each rule has a student of its own, and neither is that of a single model.
    let single =
        format!("[teacher]\nkind = \"embedded\"\nmodel = \"{}\"", bench.teacher(1).display());
    run(bench.recipe("single", &single), Existing::Refuse).await.unwrap();
    let [a, b, c] = ["whole-arithmetic", "whole-geometric", "single"].map(|run| bench.weights(run));
    assert!(a != b && a != c && b != c);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_rule_is_another_run() {
    let bench = Bench::new();
    let (stop, stopping) = watch::channel(false);
    let arithmetic = embedded(&bench, "ensemble = \"arithmetic\"");
    let at = move |step| {
        if step == 3 {
            stop.send_replace(true);
        }
    };
    let recipe = bench.recipe("run", &arithmetic);
    run_watched(recipe, Existing::Refuse, stopping, at).await.unwrap();
    let geometric = embedded(&bench, "ensemble = \"geometric\"");
    let error = run(bench.recipe("run", &geometric), Existing::Resume).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    let expected = "teacher.ensemble is \"geometric\", but the run was started with \"arithmetic\"";
    assert_eq!(cause, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_asked_for_the_recipes_rule() {
    let bench = Bench::new();
    let mut settings = Settings::embedded(bench.teacher(1));
    settings.model.push(bench.teacher(2));
    let server = Server::bind(settings).await.unwrap().spawn();
    let mut fingerprints = Vec::new();
    for rule in ["arithmetic", "geometric"] {
        let more = format!("ensemble = \"{rule}\"");
        let elsewhere = endpoints(&[server.address()], &more);
        let outcome = run(bench.recipe(rule, &elsewhere), Existing::Refuse).await.unwrap();
        fingerprints.push(outcome.teacher.unwrap());
        let here = format!("here-{rule}");
        run(bench.recipe(&here, &embedded(&bench, &more)), Existing::Refuse).await.unwrap();
        assert_eq!(bench.weights(rule), bench.weights(&here), "the same labels, here or there");
    }
    assert_ne!(fingerprints[0], fingerprints[1]);
    // Without a rule the server's holds: the arithmetic mean.
    let default = endpoints(&[server.address()], "");
    let outcome = run(bench.recipe("default", &default), Existing::Refuse).await.unwrap();
    assert_eq!(outcome.teacher.as_ref(), fingerprints.first());
    assert_eq!(bench.weights("default"), bench.weights("arithmetic"));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_ensemble_cannot_give_is_told_at_connect() {
    let bench = Bench::new();
    let refused = async |recipe| {
        let error = run(recipe, Existing::Refuse).await.unwrap_err();
        assert!(matches!(error, Error::Labels(ClientError::Unsuitable { .. })), "{error}");
        assert_eq!(error.exit_code(), 64);
        error.to_string()
    };
    let hidden = embedded(&bench, "encoding = { kind = \"hidden\" }");
    let error = refused(bench.recipe("hidden", &hidden)).await;
    assert!(error.contains("an ensemble of 2 models has no one hidden state"), "{error}");

    let logits = |name, more| {
        let mut recipe = bench.recipe(name, &embedded(&bench, more));
        recipe.loss.divergence = stillhouse_nn::Divergence::LogitMse;
        recipe
    };
    let error = refused(logits("mse", "")).await;
    assert!(error.contains("the rule is Arithmetic, expected Geometric"), "{error}");
    let recipe = logits("mse-geometric", "ensemble = \"geometric\"");
    assert!(run(recipe, Existing::Refuse).await.unwrap().finished);

    // A teacher that knows no rules would answer by its own, and say nothing.
    let old = serve_fake(Arc::new(Fake::new())).await;
    let section = endpoints(&[old], "ensemble = \"geometric\"");
    let error = refused(bench.recipe("old", &section)).await;
    assert!(error.contains("rule_fingerprints is [], expected Geometric"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_model_is_the_same_under_any_rule() {
    let bench = Bench::new();
    let server = serve(bench.teacher(1), 0).await;
    for (name, more) in [("plain", ""), ("geometric", "ensemble = \"geometric\"")] {
        let section = endpoints(&[server.address()], more);
        run(bench.recipe(name, &section), Existing::Refuse).await.unwrap();
    }
    assert_eq!(bench.weights("plain"), bench.weights("geometric"));
    server.shutdown().await.unwrap();
}
