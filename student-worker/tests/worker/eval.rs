//! `student-worker eval`: every format, the errors of every class, and offsets to logits.

use std::path::Path;

use serde_json::Value;

use crate::{
    formats::write_others,
    support::{Bench, refused, text, worker},
};

fn figures(arguments: &[&str]) -> Value {
    let output = worker(&[&["eval"], arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn errors(figures: &Value) -> u64 {
    figures["errors"].as_u64().unwrap()
}

/// A bench with a student whose teacher knows three classes, and which was shown rows of two.
fn bench() -> Bench {
    let bench = Bench::new();
    let teacher = bench.write_recipe("teacher", "");
    let section = "[teacher]\nkind = \"embedded\"\nmodel = \"runs/teacher\"";
    let student = bench.write_recipe("student", section);
    for (recipe, change) in [(teacher, "seed=8"), (student, "data.leave_out=[2]")] {
        let epochs = ["--set", "train.epochs=20", "--set", change, "--json"];
        let trained = worker(&[&["train", text(&recipe)], &epochs[..]].concat());
        assert!(trained.status.success(), "{trained:?}");
    }
    bench
}

#[test]
fn every_format_gives_the_same_figures() {
    let bench = bench();
    write_others(&bench);
    let at = |name: &str| bench.path().join(name);
    let (model, data) = (at("runs/student"), bench.path());
    let expected = figures(&[text(&model), "--data", text(data)]);
    let classes = expected["classes"].as_array().unwrap();
    let sum = |key: &str| classes.iter().map(|of| of[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("rows"), sum("errors")), (60, errors(&expected)));
    assert_eq!((&classes[1]["class"], &classes[1]["rows"]), (&1.into(), &20.into()));

    let parquet = at("test-0.parquet");
    let (images, labels) = (at("t10k-images-idx3-ubyte"), at("t10k-labels-idx1-ubyte"));
    for given in [
        &["--data", text(data), "--format", "parquet"][..],
        &["--test-file", text(&parquet), "--format", "parquet"],
        &["--test-file", text(&images), "--test-file", text(&labels)],
    ] {
        assert_eq!(figures(&[&[text(&model)], given].concat()), expected, "{given:?}");
    }
    let folder = figures(&[text(&model), "--data", text(&at("folder")), "--format", "folder"]);
    assert_eq!(folder["classes"], expected["classes"]);
    // A folder of unlabelled images, whose name comes before those of the classes.
    let (more, image) = (at("folder/train/batch"), at("folder/test/class-0/0000.png"));
    std::fs::create_dir(&more).unwrap();
    std::fs::copy(image, more.join("1.png")).unwrap();
    let all = at("folder");
    let given = ["--data", text(&all), "--format", "folder"];
    refused(
        &[&["eval", text(&model)], &given[..]].concat(),
        64,
        "class folders is 4, expected at most 3",
    );
    let unlabelled = figures(&[&[text(&model)], &given[..], &["--unlabelled"]].concat());
    assert_eq!(unlabelled["classes"], expected["classes"]);
}

#[test]
fn an_offset_gives_a_class_back_that_the_student_was_never_shown() {
    let bench = bench();
    let (model, data) = (bench.path().join("runs/student"), bench.path());
    let given = [text(&model), "--data", text(data)];
    let plain = figures(&given);
    let fitted = figures(&[&given[..], &["--fit-bias", "2"]].concat());
    assert_eq!(fitted["fitted"]["errors_before"], plain["errors"]);
    assert_eq!(fitted["fitted"]["errors_after"], fitted["errors"]);
    assert!(errors(&fitted) < errors(&plain), "{fitted}");
    let offset = fitted["fitted"]["offset"].as_f64().unwrap();
    assert!(offset > 0.0);
    let given_bias = figures(&[&given[..], &["--bias", &format!("2={offset}")]].concat());
    assert_eq!(given_bias["classes"], fitted["classes"]);
    for nearby in [0.25, 0.5, 1.0, 2.0, 4.0] {
        let bias = format!("--bias=2={}", offset * nearby);
        assert!(errors(&figures(&[&given[..], &[&bias]].concat())) >= errors(&fitted));
    }
    let twice = figures(&[&given[..], &["--bias", "0=-100", "--bias", "1=-100"]].concat());
    assert_eq!(errors(&twice), 40, "only class 2 is left");

    let output = worker(&[&["eval"], &given[..], &["--fit-bias", "1,2"]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("fitted bias of 1,2: "), "{said}");
    assert!(said.contains("\n  class      rows    errors  percent\n      0        20 "), "{said}");
}

#[test]
fn several_models_are_tested_as_one() {
    let bench = Bench::new();
    let (a, b) = (bench.teacher(1), bench.teacher(2));
    let given = ["--data", text(bench.path())];
    let of = |more: &[&str]| figures(&[&given[..], more].concat());
    let [alone, other] = [&a, &b].map(|model| of(&[text(model)]));
    assert_ne!(alone, other);
    // One model is itself by any rule, and so are two that say the same.
    for rule in ["arithmetic", "geometric"] {
        assert_eq!(of(&[text(&a), "--ensemble", rule]), alone);
        let twice = of(&[text(&a), text(&a), "--ensemble", rule]);
        assert_eq!(twice["classes"], alone["classes"]);
        let loss = |figures: &Value| figures["loss"].as_f64().unwrap();
        assert!((loss(&twice) - loss(&alone)).abs() < 1e-12, "{twice}");
        // Below the mean of the losses: -log and log-sum-exp are convex.
        let both = of(&[text(&a), text(&b), "--ensemble", rule]);
        assert!(loss(&both) < (loss(&alone) + loss(&other)) / 2.0, "{both}");
    }
    let rule = |rule: &str| of(&[text(&a), text(&b), "--ensemble", rule]);
    assert_eq!(of(&[text(&a), text(&b)]), rule("arithmetic"));
    assert_ne!(rule("geometric"), rule("arithmetic"));

    let resnet = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/resnet20-cifar10");
    let unlike = ["eval", text(&a), text(&resnet), given[0], given[1]];
    refused(&unlike, 64, "a model of 3 x 32 x 32 images and 10 classes, expected 16 values and 3");
}

#[test]
fn what_cannot_be_tested_is_64() {
    let bench = bench();
    let (model, data) = (bench.path().join("runs/student"), bench.path());
    let given = ["eval", text(&model)];
    let refused = |more: &[&str], words| refused(&[&given[..], more].concat(), 64, words);
    refused(&[], "--data <DIR>");
    refused(&["--data", text(data), "--format", "csv"], "possible values: mnist, cifar10");
    refused(&["--data", text(data), "--format", "cifar10"], "neither `test_batch.bin` nor");
    refused(&["--data", text(data), "--format", "parquet"], "has no `test-*.parquet`");
    refused(&["--data", text(data), "--bias", "2"], "expected a class's number");
    refused(&["--data", text(data), "--bias", "3=1"], "--bias is 3=1, expected a class from 0");
    refused(&["--data", text(data), "--fit-bias", "0,1,2"], "expected not all classes");
    refused(&["--test-file", "x"], "expected twice with --format mnist");
    refused(&["--test-file", "x", "--format", "folder"], "expected --data DIR");
    let cifar = cifar();
    let named = ["--format", "cifar10", "--test-file", text(&cifar)];
    refused(&named, "image shape is 3 x 32 x 32, expected 16 values, the student's input_size");
}

fn cifar() -> std::path::PathBuf {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    examples.join("data/cifar10/test_first1000.bin.gz")
}

/// The published network gets 91.5 % of these images right.
#[test]
fn a_published_network_does_as_well_as_it_is_said_to() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/resnet20-cifar10");
    let cifar = cifar();
    let given = [text(&model), "--format", "cifar10", "--test-file", text(&cifar)];
    let figures = figures(&given);
    assert_eq!((errors(&figures), figures["rows"].as_u64()), (85, Some(1000)));
}
