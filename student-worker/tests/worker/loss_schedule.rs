//! Losses that change over the epochs: what is asked for, what is trained on, and resumption.

use std::{path::Path, sync::Arc};

use student_worker::{
    recipe::{self, Recipe},
    run_folder::{
        Existing,
        metrics::{self, Record},
    },
};
use tokio::sync::watch;

use crate::{
    fake_teacher::{Fake, serve_fake},
    support::{Bench, endpoints, run, run_watched},
};

const SCHEDULE: [&str; 4] = [
    "loss.temperature=8.0",
    "loss_schedule.start_epoch=2",
    "loss_schedule.temperature={kind=\"linear\", to=2.0, begin_epoch=2, end_epoch=4}",
    "loss_schedule.alpha={kind=\"steps\", steps=[{epoch=4, value=0.5}]}",
];

fn recipe(bench: &Bench, name: &str, teacher: &str, set: &[&str]) -> Recipe {
    let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
    let file = bench.write_recipe(name, teacher);
    if set.iter().any(|set| set.starts_with("loss.soft_weight")) {
        // Alpha has no place beside both weights.
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("alpha = 0.9\n", "")).unwrap();
    }
    recipe::load(&file, &set).unwrap()
}

fn embedded(bench: &Bench, more: &str) -> String {
    format!("[teacher]\nkind = \"embedded\"\nmodel = \"{}\"\n{more}", bench.teacher(1).display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_epoch_asks_for_its_own_temperature_and_none_before_the_start() {
    let bench = Bench::new();
    let fake = Arc::new(Fake::new());
    let teacher = endpoints(&[serve_fake(Arc::clone(&fake)).await], "");
    let outcome = run(recipe(&bench, "run", &teacher, &SCHEDULE), Existing::Refuse).await.unwrap();
    // 120 rows in batches of 16: 8 a epoch, of which the first has none.
    let asked = fake.temperatures.lock().unwrap().clone();
    assert_eq!(asked, [[8.0; 8], [5.0; 8], [2.0; 8]].concat());

    let lines = std::fs::read_to_string(outcome.folder.join("metrics.jsonl")).unwrap();
    let mut steps = 0;
    for line in lines.lines() {
        let Record::Step(step) = serde_json::from_str(line).unwrap() else { continue };
        steps += 1;
        let (hard, Some(soft)) = (step.hard_loss.unwrap(), step.soft_loss) else {
            assert_eq!((step.epoch, step.loss), (1, step.hard_loss.unwrap()));
            assert_eq!((step.alpha, step.temperature), (None, None));
            continue;
        };
        let (alpha, temperature) = [(0.9, 8.0), (0.9, 5.0), (0.5, 2.0)][step.epoch as usize - 2];
        assert_eq!((step.alpha, step.temperature), (Some(alpha), Some(temperature)));
        assert!((step.loss - ((1.0 - alpha) * hard + alpha * soft)).abs() < 1e-9);
    }
    assert_eq!(steps, 32);
    let events = std::fs::read_dir(outcome.folder.join("tensorboard")).unwrap().next().unwrap();
    let events = std::fs::read(events.unwrap().path()).unwrap();
    for tag in ["train/alpha", "train/temperature"] {
        let found = events.windows(tag.len()).filter(|bytes| *bytes == tag.as_bytes());
        assert_eq!(found.count(), 24, "{tag}");
    }
    let report = std::fs::read_to_string(outcome.report.unwrap()).unwrap();
    let words = "α = 0.9, 0.5 from epoch 4 on; T = 8 to 2 (linear, epochs 2 to 4); \
                 hard labels alone before epoch 2";
    assert!(report.contains(words), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_goes_on_to_the_same_bytes() {
    let bench = Bench::new();
    let teacher = embedded(&bench, "");
    let whole = recipe(&bench, "whole", &teacher, &SCHEDULE);
    run(whole, Existing::Refuse).await.unwrap();
    // Before distillation, at its start, and where the temperature changes.
    for at in [3, 8, 16, 23] {
        let name = format!("cut-{at}");
        let (stop, stopping) = watch::channel(false);
        let watch = move |step| {
            if step == at {
                stop.send_replace(true);
            }
        };
        let cut = recipe(&bench, &name, &teacher, &SCHEDULE);
        run_watched(cut.clone(), Existing::Refuse, stopping, watch).await.unwrap();
        assert!(run(cut, Existing::Resume).await.unwrap().finished);
        assert_eq!(bench.weights(&name), bench.weights("whole"), "stopped at {at}");
    }
    let constant = recipe(&bench, "constant", &teacher, &SCHEDULE[..1]);
    run(constant, Existing::Refuse).await.unwrap();
    assert_ne!(bench.weights("constant"), bench.weights("whole"));
    let error = run(recipe(&bench, "whole", &teacher, &SCHEDULE[..3]), Existing::Resume).await;
    let error = error.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("loss_schedule.alpha"), "{cause}");
}

/// Bucila's logit matching, Hinton's cross-entropy and weights of their own, end to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_the_loss_can_be_trained_with() {
    let bench = Bench::new();
    let teacher = embedded(&bench, "");
    let (mut weights, mut losses) = (Vec::new(), Vec::new());
    for (name, set) in [
        ("kl", &[][..]),
        ("matching", &["loss.divergence={kind=\"logit_mse\"}"]),
        ("hinton", &["loss.divergence={kind=\"cross_entropy\"}"]),
        ("weights", &["loss.hard_weight=0.1", "loss.soft_weight=1.5"]),
        ("short", &["train.max_norm=0.5"]),
    ] {
        let outcome = run(recipe(&bench, name, &teacher, set), Existing::Refuse).await.unwrap();
        let soft = soft_losses(&outcome.folder);
        let sum = |steps: &[f64]| steps.iter().sum::<f64>();
        assert!(sum(&soft[24..]) < sum(&soft[..8]), "{name} does not come nearer to its teacher");
        weights.push((name, bench.weights(name)));
        losses.push(soft);
    }
    let [kl, matching, hinton, ..] = losses.as_slice() else { panic!("{losses:?}") };
    // Hinton's form is higher by T^2 times the teacher's entropy, which is at most ln 3, and that
    // of the same rows is the same in every epoch (steps differ in size, so nearly).
    let entropy = |steps: std::ops::Range<usize>| {
        steps.map(|step| (hinton[step] - kl[step]) / 16.0).sum::<f64>() / 8.0
    };
    let (first, last) = (entropy(0..8), entropy(24..32));
    assert!(first > 0.5 && first < 3f64.ln(), "{first}");
    assert!((first / last - 1.0).abs() < 0.02, "{first} {last}");
    let report = bench.path().join("runs/weights/report.md");
    let report = std::fs::read_to_string(report).unwrap();
    assert!(report.contains("| 0.1 CE + 1.5 T² forward_kl; T = 4 |"), "{report}");
    // The soft-target cross-entropy has the KL's gradient, so its student is the KL's but for
    // rounding; all others differ.
    for (i, (a, first)) in weights.iter().enumerate() {
        for (b, second) in &weights[..i] {
            assert!(first != second || (*a, *b) == ("hinton", "kl"), "{a} {b}");
        }
    }
    // Logits are the same at every temperature, and so is the loss that compares them.
    let set = [
        "loss.divergence={kind=\"logit_mse\"}",
        "loss_schedule.temperature={kind=\"cosine\", to=1.0, begin_epoch=1, end_epoch=3}",
    ];
    let scheduled = recipe(&bench, "scheduled", &teacher, &set);
    let outcome = run(scheduled, Existing::Refuse).await.unwrap();
    for (found, expected) in soft_losses(&outcome.folder).iter().zip(matching) {
        assert!((found / expected - 1.0).abs() < 1e-3, "{found} {expected}");
    }
}

/// The distillation term of every step, before its weight.
fn soft_losses(folder: &Path) -> Vec<f64> {
    let records = metrics::read(&folder.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = records
        .iter()
        .filter_map(|record| match record {
            Record::Step(step) => step.soft_loss,
            Record::Test(_) | Record::Validation(_) => None,
        })
        .collect();
    assert_eq!(losses.len(), 32);
    losses
}

#[test]
fn faults_are_named() {
    let bench = Bench::new();
    let teacher = embedded(&bench, "");
    for (set, expected) in [
        (
            "loss_schedule.start_epoch=5",
            "loss_schedule.start_epoch: 5 is not accepted, expected 1 to 4",
        ),
        (
            "loss_schedule.alpha={kind=\"linear\", to=1.5, begin_epoch=1, end_epoch=2}",
            "loss_schedule.alpha.to: 1.5 is not accepted, expected 0 to 1",
        ),
        (
            "loss_schedule.temperature={kind=\"linear\", to=0.0, begin_epoch=1, end_epoch=2}",
            "loss_schedule.temperature.to: 0e0 is not accepted",
        ),
        (
            "loss_schedule.temperature={kind=\"cosine\", to=2.0, begin_epoch=3, end_epoch=3}",
            "loss_schedule.temperature.end_epoch: 3 is not accepted, expected above 3",
        ),
        (
            "loss_schedule.alpha={kind=\"steps\", steps=[{epoch=3, value=0.5}, {epoch=2, value=0.4}]}",
            "loss_schedule.alpha.steps[1].epoch: 2 is not accepted, expected above 3",
        ),
        (
            "loss_schedule.temperature={kind=\"steps\", steps=[{epoch=2, value=2}, {epoch=3, value=-1}]}",
            "loss_schedule.temperature.steps[1].value: -1e0 is not accepted",
        ),
        ("loss.soft_weight=-1", "loss.soft_weight is -1; expected a finite number, 0 or more"),
        ("loss.soft_weight=0", "loss.soft_weight: 0 is not accepted, expected above 0 where"),
        ("train.max_norm=0", "train.max_norm: 0 is not accepted"),
    ] {
        let file = bench.write_recipe("run", &teacher);
        let error = recipe::load(&file, &[set.to_owned()]).unwrap_err().to_string();
        assert!(error.contains(expected), "{set}: {error}");
    }
    let file = bench.write_recipe("run", "");
    let set = ["loss_schedule.start_epoch=2".to_owned()];
    let error = recipe::load(&file, &set).unwrap_err().to_string();
    assert!(error.contains("none where there is no [teacher]"), "{error}");
}
