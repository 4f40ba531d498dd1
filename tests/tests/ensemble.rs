//! A server of several models answers with the mean that each request asks for.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use stillhouse_nn::{Classifier, Philox};
use stillhouse_proto::{
    SoftLabels, decode,
    v1::{
        DenseEncoding, DenseKind, DescribeRequest, DescribeResponse, EnsembleRule,
        FetchHeadRequest, HiddenEncoding, LabelRequest, LabelResponse, TopKEncoding,
        encoding::Kind, label_stream_response::Result as Answer,
    },
};
use stillhouse_tests::{
    client::{self, Client},
    models,
    process::{self, Teacher},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

const WIDTH: usize = 6;
const CLASSES: usize = 11;
const ROWS: usize = 7;
const TEMPERATURES: [f32; 3] = [0.25, 1.0, 20.0];

/// Two models of different depth.
fn members(folder: &Path) -> [PathBuf; 2] {
    let folders = ["a", "b"].map(|name| folder.join(name));
    for (folder, (hidden, seed)) in folders.iter().zip([(&[16][..], 4), (&[12, 9][..], 5)]) {
        fs::create_dir(folder).unwrap();
        models::write_mlp(folder, WIDTH, hidden, CLASSES, seed);
    }
    folders
}

fn rows() -> Vec<f32> {
    let mut random = Philox::new(5, 0);
    (0..ROWS * WIDTH).map(|_| 8.0 * random.normal() as f32).collect()
}

/// softmax(z / T), in f64.
fn softmax(logits: &[f64], temperature: f32) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|z| z / f64::from(temperature)).collect();
    let top = scaled.iter().copied().fold(f64::MIN, f64::max);
    let mass: f64 = scaled.iter().map(|x| (x - top).exp()).sum();
    scaled.iter().map(|x| (x - top).exp() / mass).collect()
}

/// Of all rows, from the members' own logits.
fn expected(folders: &[PathBuf], rule: EnsembleRule, temperature: f32) -> Vec<f64> {
    let count = folders.len() as f64;
    let logits: Vec<Vec<f64>> = folders
        .iter()
        .map(|folder| {
            let model = Classifier::load(folder).unwrap();
            model.infer(&rows(), ROWS).unwrap().logits.into_iter().map(f64::from).collect()
        })
        .collect();
    let mut all = Vec::new();
    for row in 0..ROWS {
        let members = logits.iter().map(|member| &member[row * CLASSES..][..CLASSES]);
        let mean = |values: Vec<Vec<f64>>| -> Vec<f64> {
            (0..CLASSES).map(|at| values.iter().map(|v| v[at]).sum::<f64>() / count).collect()
        };
        all.extend(match rule {
            EnsembleRule::Geometric => {
                softmax(&mean(members.map(<[f64]>::to_vec).collect()), temperature)
            }
            _ => mean(members.map(|logits| softmax(logits, temperature)).collect()),
        });
    }
    all
}

fn request(id: u64, kind: Kind, rule: EnsembleRule) -> LabelRequest {
    LabelRequest {
        temperatures: TEMPERATURES.to_vec(),
        encoding: client::encoding(kind),
        ensemble_rule: rule.into(),
        ..client::request(id, &rows(), WIDTH)
    }
}

fn dense(kind: DenseKind) -> Kind {
    Kind::Dense(DenseEncoding { kind: kind.into(), dtype: 0 })
}

async fn describe(client: &mut Client) -> DescribeResponse {
    client.describe(DescribeRequest {}).await.unwrap().into_inner()
}

/// Holds an answer in probabilities against the members' logits and the rule's fingerprint.
fn check(
    answer: &LabelResponse,
    folders: &[PathBuf],
    rule: EnsembleRule,
    about: &DescribeResponse,
) {
    let of = about.rule_fingerprints.iter().find(|of| of.rule() == rule).unwrap();
    assert_eq!(answer.fingerprint, of.fingerprint);
    assert!(answer.row_errors.is_empty());
    for (labels, temperature) in answer.labels.iter().zip(TEMPERATURES) {
        let SoftLabels::Dense { values, .. } = decode(labels).unwrap().labels else {
            panic!("not dense")
        };
        let expected = expected(folders, rule, temperature);
        assert_eq!(values.len(), expected.len());
        for (found, expected) in values.iter().zip(expected) {
            let difference = (f64::from(*found) - expected).abs();
            assert!(difference < 1e-7, "{rule:?} at {temperature}: {found}, expected {expected}");
        }
    }
}

#[tokio::test]
async fn each_request_gets_the_mean_that_it_asks_for() {
    use EnsembleRule::{Arithmetic, Geometric, Unspecified};
    let folder = tempfile::tempdir().unwrap();
    let folders = members(folder.path());
    let second = folders[1].to_str().unwrap();
    let teacher = Teacher::start(&folders[0], &["--model", second]);
    assert_eq!(teacher.metric("stillhouse_teacher_members"), 2.0);
    let mut client = client::connect(teacher.address()).await;
    let about = describe(&mut client).await;
    assert_eq!((about.default_rule(), about.name.as_str()), (Arithmetic, "a + b"));

    let probabilities = || dense(DenseKind::Probabilities);
    for (asked, rule) in
        [(Unspecified, Arithmetic), (Arithmetic, Arithmetic), (Geometric, Geometric)]
    {
        let answer = client.label(request(1, probabilities(), asked)).await.unwrap().into_inner();
        check(&answer, &folders, rule, &about);
    }

    // Rules take turns on one stream; the bits are those of the unary answers.
    let (send, requests) = mpsc::channel(16);
    let stream = client.label_stream(ReceiverStream::new(requests)).await.unwrap();
    let mut answers = stream.into_inner();
    let rule = |id: u64| if id.is_multiple_of(2) { Arithmetic } else { Geometric };
    for id in 0..10 {
        let message = client::on_stream(request(id, probabilities(), rule(id)));
        send.send(message).await.unwrap();
    }
    drop(send);
    let mut answered = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        let Some(Answer::Response(response)) = answer.result else { panic!("{answer:?}") };
        check(&response, &folders, rule(answer.id), &about);
        let unary = client.label(request(1, probabilities(), rule(answer.id))).await.unwrap();
        assert_eq!(response.labels, unary.into_inner().labels);
        answered += 1;
    }
    assert_eq!(answered, 10);

    // The most probable classes are those of the same distribution.
    for rule in [Arithmetic, Geometric] {
        let top = Kind::TopK(TopKEncoding { k: 3, dtype: 0 });
        let answer = client.label(request(1, top, rule)).await.unwrap().into_inner();
        for (labels, temperature) in answer.labels.iter().zip(TEMPERATURES) {
            let SoftLabels::TopK { ids, log_probabilities, .. } = decode(labels).unwrap().labels
            else {
                panic!("not top_k")
            };
            let expected = expected(&folders, rule, temperature);
            for (at, (id, log)) in ids.iter().zip(log_probabilities).enumerate() {
                let row = &expected[at / 3 * CLASSES..][..CLASSES];
                let above = row.iter().filter(|p| **p > row[*id as usize]).count();
                assert_eq!(above, at % 3, "{rule:?} at {temperature}");
                assert!((f64::from(log).exp() - row[*id as usize]).abs() < 1e-6);
            }
        }
    }
}

#[tokio::test]
async fn what_an_ensemble_has_not_is_refused_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let folders = members(folder.path());
    let list = format!("model = {folders:?}\nensemble = \"geometric\"\n");
    let file = folder.path().join("teacher.toml");
    fs::write(&file, list).unwrap();
    let mut command = Command::new(process::binary("teacher-server"));
    command.arg("--config").arg(&file).args(["--listen", "127.0.0.1:0", "--log-format", "json"]);
    let teacher = Teacher::spawn(command);
    let mut client = client::connect(teacher.address()).await;
    let about = describe(&mut client).await;
    assert_eq!((about.default_rule(), about.hidden_size), (EnsembleRule::Geometric, 0));

    let hidden = Kind::Hidden(HiddenEncoding::default());
    for (kind, rule, expected) in [
        (hidden, EnsembleRule::Unspecified, "encoding: is hidden; must be one of dense, top_k"),
        (dense(DenseKind::Logits), EnsembleRule::Arithmetic, "encoding.dense.kind: is LOGITS"),
    ] {
        let status = client.label(request(1, kind, rule)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with(expected), "{status:?}");
    }
    let status = client.label(LabelRequest {
        ensemble_rule: 9,
        ..request(1, dense(DenseKind::Probabilities), EnsembleRule::Unspecified)
    });
    let status = status.await.unwrap_err();
    assert!(
        status.message().contains("ensemble_rule: is 9; must be an EnsembleRule"),
        "{status:?}"
    );
    let status = client.fetch_head(FetchHeadRequest { dtype: 0 }).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");

    // The mean logits, under the server's own rule.
    let logits = request(1, dense(DenseKind::Logits), EnsembleRule::Unspecified);
    let answer = client.label(logits).await.unwrap().into_inner();
    assert_eq!(answer.fingerprint, about.fingerprint);
    let SoftLabels::Dense { values, .. } = decode(&answer.labels[0]).unwrap().labels else {
        panic!("not dense")
    };
    for temperature in TEMPERATURES {
        let expected = expected(&folders, EnsembleRule::Geometric, temperature);
        for (logits, expected) in values.chunks(CLASSES).zip(expected.chunks(CLASSES)) {
            let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
            for (found, expected) in softmax(&logits, temperature).iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6 / f64::from(temperature).min(1.0));
            }
        }
    }
}

#[tokio::test]
async fn one_model_is_itself_under_any_rule() {
    let folder = tempfile::tempdir().unwrap();
    let folders = members(folder.path());
    let teacher = Teacher::start(&folders[0], &["--ensemble", "geometric"]);
    let mut client = client::connect(teacher.address()).await;
    let about = describe(&mut client).await;
    let own = Classifier::load(&folders[0]).unwrap().fingerprint();
    let all = about.rule_fingerprints.iter().map(|of| &of.fingerprint);
    let all: Vec<_> = all.chain(about.members.iter().map(|member| &member.fingerprint)).collect();
    assert_eq!((about.fingerprint.as_ref(), all.len()), (&own[..], 3));
    assert!(all.iter().all(|fingerprint| ***fingerprint == own));
    assert_eq!(about.encodings.len(), 5);
    for kind in [DenseKind::Probabilities, DenseKind::Logits] {
        let mut answers = Vec::new();
        for rule in [EnsembleRule::Arithmetic, EnsembleRule::Geometric] {
            answers.push(client.label(request(1, dense(kind), rule)).await.unwrap().into_inner());
        }
        assert_eq!(answers[0].labels, answers[1].labels);
        assert_eq!(answers[0].fingerprint.as_ref(), own);
    }
}

/// The order of the members is part of the fingerprint; the ways to name them are not.
#[tokio::test]
async fn the_environment_names_them_as_flags_do() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = members(folder.path());
    let fingerprint = async |models: &[&Path], list: Option<String>| {
        let mut command = Command::new(process::binary("teacher-server"));
        command.args(["--listen", "127.0.0.1:0", "--log-format", "json"]);
        for model in models {
            command.arg("--model").arg(model);
        }
        command.envs(list.map(|list| ("STILLHOUSE_MODEL", list)));
        let teacher = Teacher::spawn(command);
        describe(&mut client::connect(teacher.address()).await).await.fingerprint
    };
    let flags = fingerprint(&[&a, &b], None).await;
    assert_eq!(flags, fingerprint(&[], Some(format!("{:?}", [&a, &b]))).await);
    assert_ne!(flags, fingerprint(&[&b, &a], None).await);
    let single = Classifier::load(&b).unwrap().fingerprint();
    let named = fingerprint(&[], Some(b.display().to_string())).await;
    assert_eq!(named.as_ref(), single);
    // Flags win over the environment; they do not add to it.
    assert_eq!(fingerprint(&[&b], Some(a.display().to_string())).await.as_ref(), single);
}

#[test]
fn members_that_do_not_go_together_are_refused_before_the_port_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let [a, _] = members(folder.path());
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let fails = |other: &Path| {
        let output = Command::new(process::binary("teacher-server"))
            .arg("--model")
            .arg(&a)
            .arg("--model")
            .arg(other)
            .args(["--listen", &held.local_addr().unwrap().to_string()])
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for (name, width, classes, what) in [
        ("wide", WIDTH + 1, CLASSES, "input width is 6 in"),
        ("many", WIDTH, CLASSES + 1, "number of classes is 11 in"),
    ] {
        let other = folder.path().join(name);
        fs::create_dir(&other).unwrap();
        models::write_mlp(&other, width, &[8], classes, 1);
        let (code, text) = fails(&other);
        assert_eq!(code, 64, "{text}");
        for part in [what, a.to_str().unwrap(), other.to_str().unwrap(), "must agree"] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
    let (code, text) = fails(&folder.path().join("none"));
    assert!(code == 64 && text.contains("config.json"), "{code} {text}");
    // What goes together finds the port taken.
    let (code, text) = fails(&a);
    assert!(code == 75 && text.contains("in use"), "{code} {text}");
}
