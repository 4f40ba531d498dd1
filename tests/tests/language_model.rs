//! A real pretrained language model, served as a teacher over gRPC: what it says is known from
//! `llama2.c`, whatever its labels travel as.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use stillhouse_nn::{Head, TextModel, TokenBatch, TokenizerInfo};
use stillhouse_proto::{
    SoftLabels, decode,
    dtype::to_f32,
    request::pack_ids,
    v1::{
        DType, DenseEncoding, DenseKind, DescribeRequest, FetchHeadRequest, HiddenEncoding,
        IdsEncoding, LabelRequest, SampledEncoding, Sequences, Task, TopKEncoding, encoding::Kind,
        input_signature, label_request::Inputs,
    },
};
use stillhouse_tests::{
    client::{self, Client},
    process::{Teacher, UNCACHED},
};
use tokio::runtime::Runtime;

const WORDS: usize = 512;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/stories260K")
}

fn greedy() -> (Vec<u32>, Vec<f64>) {
    let text = std::fs::read_to_string(folder().join("expected_greedy.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let list = |key: &str| expected[key].as_array().unwrap().clone();
    let ids = list("ids_greedy_200").iter().map(|id| id.as_u64().unwrap() as u32).collect();
    (ids, list("logits_after_bos_first8").iter().map(|z| z.as_f64().unwrap()).collect())
}

fn request(rows: &[&[u32]], labelled: Option<&[bool]>, kind: Kind) -> LabelRequest {
    LabelRequest {
        inputs: Some(Inputs::Sequences(Sequences::pack(rows, labelled).unwrap())),
        encoding: client::encoding(kind),
        ..client::request(0, &[0.0], 1)
    }
}

fn dense(kind: DenseKind) -> Kind {
    Kind::Dense(DenseEncoding { kind: kind.into(), dtype: DType::F32.into() })
}

struct Session {
    runtime: Runtime,
    client: Client,
    _teacher: Teacher,
}

impl Session {
    fn start(arguments: &[&str]) -> Self {
        let runtime = Runtime::new().unwrap();
        // What is asked for twice is computed twice: labels do not depend on their batch.
        let arguments = [arguments, &UNCACHED].concat();
        let teacher = Teacher::start(&folder(), &arguments);
        let client = runtime.block_on(client::connect(teacher.address()));
        Self { runtime, client, _teacher: teacher }
    }

    fn labels(&mut self, request: LabelRequest) -> Vec<SoftLabels> {
        let response = self.runtime.block_on(self.client.label(request)).unwrap().into_inner();
        assert!(response.row_errors.is_empty());
        response.labels.iter().map(|labels| decode(labels).unwrap().labels).collect()
    }

    fn dense(&mut self, request: LabelRequest) -> Vec<f32> {
        match self.labels(request).remove(0) {
            SoftLabels::Dense { values, .. } => values,
            other => panic!("{other:?}"),
        }
    }
}

/// Token by token, each time of the last position alone, as a client would that generates.
#[test]
fn greedy_continuation_over_grpc_is_llama2_cs() {
    let mut session = Session::start(&[]);
    let (expected, first_logits) = greedy();
    let mut ids = vec![expected[0]];
    while ids.len() < expected.len() {
        let mut last = vec![false; ids.len()];
        *last.last_mut().unwrap() = true;
        let logits = session.dense(request(&[&ids], Some(&last), dense(DenseKind::Logits)));
        assert_eq!(logits.len(), WORDS);
        if ids.len() == 1 {
            for (found, expected) in logits.iter().zip(&first_logits) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
        let best = (0..WORDS).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        ids.push(best as u32);
    }
    assert_eq!(ids, expected);
}

#[test]
fn it_says_what_it_is_and_what_it_takes() {
    let mut session = Session::start(&["--set", "limits.max_tokens=400"]);
    let describe = session.client.describe(DescribeRequest {});
    let described = session.runtime.block_on(describe).unwrap().into_inner();
    assert_eq!((described.task(), described.classes), (Task::LanguageModel, 512));
    assert_eq!((described.hidden_size, described.encodings.len()), (64, 5));
    assert_eq!(described.limits.unwrap().max_tokens, 400);
    let Some(input_signature::Kind::Sequences(sequences)) = described.input.unwrap().kind else {
        panic!("no sequences")
    };
    assert_eq!(sequences.max_length, 400, "a sequence must fit in a request");
    let tokenizer = TokenizerInfo::load(&folder()).unwrap().unwrap();
    assert_eq!(*sequences.tokenizer_sha256, tokenizer.sha256);
    let model = TextModel::load(&folder()).unwrap();
    assert_eq!(*described.fingerprint, model.fingerprint());

    let long = request(&[&[1; 401]], None, dense(DenseKind::Logits));
    let error = session.runtime.block_on(session.client.label(long)).unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("401 tokens in all"), "{error}");
}

/// Two sequences, some of whose positions are marked, at two temperatures.
#[test]
fn all_encodings_are_of_the_same_distribution() {
    let mut session = Session::start(&[]);
    let (ids, _) = greedy();
    let rows: [&[u32]; 2] = [&ids[..40], &ids[100..117]];
    let marks: Vec<bool> = (0..57).map(|i| i % 3 != 1).collect();
    let labelled: Vec<usize> = (0..57).filter(|i| i % 3 != 1).collect();
    let n = labelled.len();
    let ask = |kind: Kind| LabelRequest {
        temperatures: vec![1.0, 2.5],
        ..request(&rows, Some(&marks), kind)
    };

    // The model's own word.
    let model = TextModel::load(&folder()).unwrap();
    let batch = TokenBatch { ids: &rows.concat(), lengths: &[40, 17] };
    let hidden = model.hidden(&batch, Some(&labelled)).unwrap();
    let logits = model.packed_head().logits(&hidden).unwrap();
    assert_eq!(session.dense(ask(dense(DenseKind::Logits))), logits);
    let log_p = |row: usize, t: f64| -> Vec<f64> {
        let z: Vec<f64> =
            logits[row * WORDS..][..WORDS].iter().map(|&z| f64::from(z) / t).collect();
        let max = z.iter().copied().fold(f64::MIN, f64::max);
        let log_sum = z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        z.iter().map(|z| z - max - log_sum).collect()
    };
    for (set, t) in session.labels(ask(dense(DenseKind::LogProbabilities))).iter().zip([1.0, 2.5]) {
        let SoftLabels::Dense { values, .. } = set else { panic!() };
        for (row, values) in values.chunks_exact(WORDS).enumerate() {
            for (found, expected) in values.iter().zip(log_p(row, t)) {
                assert!((f64::from(*found) - expected).abs() < 1e-5);
            }
        }
    }

    let top = TopKEncoding { k: 12, dtype: DType::F32.into() };
    for (set, t) in session.labels(ask(Kind::TopK(top))).iter().zip([1.0, 2.5]) {
        let SoftLabels::TopK { ids, log_probabilities, log_tail_mass, .. } = set else { panic!() };
        assert_eq!((ids.len(), log_tail_mass.len()), (12 * n, n));
        for (row, tail) in log_tail_mass.iter().enumerate() {
            let (log_p, own) = (log_p(row, t), row * 12..(row + 1) * 12);
            let mut kept = 0.0;
            for (&id, &value) in ids[own.clone()].iter().zip(&log_probabilities[own]) {
                assert!((f64::from(value) - log_p[id as usize]).abs() < 1e-5);
                kept += log_p[id as usize].exp();
            }
            assert!((f64::from(*tail).exp() - (1.0 - kept)).abs() < 1e-5);
        }
    }

    let named: Vec<u32> = (0..n as u32).flat_map(|row| [row, 511 - row]).collect();
    let encoding = IdsEncoding { ids_per_row: 2, ids: pack_ids(&named), dtype: DType::F32.into() };
    for (set, t) in session.labels(ask(Kind::Ids(encoding))).iter().zip([1.0, 2.5]) {
        let SoftLabels::Ids { log_probabilities, .. } = set else { panic!() };
        for (i, (&id, &value)) in named.iter().zip(log_probabilities).enumerate() {
            assert!((f64::from(value) - log_p(i / 2, t)[id as usize]).abs() < 1e-5);
        }
    }

    let sampled = Kind::Sampled(SampledEncoding { draws: 3000, seed: 9 });
    for (set, t) in session.labels(ask(sampled)).iter().zip([1.0, 2.5]) {
        let SoftLabels::Sampled { distinct, ids, counts, .. } = set else { panic!() };
        let mut at = 0;
        for (row, &distinct) in distinct.iter().enumerate() {
            let log_p = log_p(row, t);
            let own = at..at + usize::from(distinct);
            at = own.end;
            assert_eq!(counts[own.clone()].iter().sum::<u32>(), 3000);
            for (&id, &count) in ids[own.clone()].iter().zip(&counts[own]) {
                let p = log_p[id as usize].exp();
                let deviation = (3000.0 * p * (1.0 - p)).sqrt();
                assert!((f64::from(count) - 3000.0 * p).abs() < 6.0 * deviation + 4.0, "{id}");
            }
        }
    }

    // Hidden states and the head that is fetched once are the logits, bit for bit.
    let hidden_f32 = Kind::Hidden(HiddenEncoding { dtype: DType::F32.into() });
    let sets = session.labels(ask(hidden_f32));
    let [SoftLabels::Hidden { width: 64, states }] = &sets[..] else { panic!() };
    assert_eq!(*states, hidden);
    let head = fetch_head(&mut session);
    assert_eq!(head.logits(states).unwrap(), logits);
}

fn fetch_head(session: &mut Session) -> Head {
    let fetch = session.client.fetch_head(FetchHeadRequest { dtype: DType::F32.into() });
    let mut pieces = session.runtime.block_on(fetch).unwrap().into_inner();
    let mut bytes = vec![];
    let mut shape = vec![];
    while let Some(piece) = session.runtime.block_on(pieces.message()).unwrap() {
        assert!(!piece.has_bias && piece.logit_softcap == 0.0);
        bytes.extend_from_slice(&piece.data);
        shape = piece.weight_shape;
    }
    assert_eq!(shape, [512, 64]);
    let weight = to_f32(DType::F32, &bytes);
    Head { weight, bias: None, classes: 512, hidden_size: 64, softcap: None }
}

/// Alone, behind others in one request, and in the same batch as other requests: the same bytes.
#[test]
fn labels_do_not_depend_on_the_batch() {
    let mut session = Session::start(&[]);
    let (ids, _) = greedy();
    let alone = session.dense(request(&[&ids[..60]], None, dense(DenseKind::LogProbabilities)));
    let rows: [&[u32]; 3] = [&ids[50..93], &ids[..60], &ids[3..4]];
    let among = session.dense(request(&rows, None, dense(DenseKind::LogProbabilities)));
    assert_eq!(among[43 * WORDS..103 * WORDS], alone);
    let concurrent: Vec<_> = (0..12)
        .map(|i| {
            let mut client = session.client.clone();
            let rows: [&[u32]; 2] = [&ids[i..60 + 3 * i], &ids[..60]];
            let request = request(&rows, None, dense(DenseKind::LogProbabilities));
            session.runtime.spawn(async move { (i, client.label(request).await.unwrap()) })
        })
        .collect();
    for task in concurrent {
        let (i, response) = session.runtime.block_on(task).unwrap();
        match decode(&response.into_inner().labels[0]).unwrap().labels {
            SoftLabels::Dense { values, .. } => assert_eq!(values[(60 + 2 * i) * WORDS..], alone),
            other => panic!("{other:?}"),
        }
    }
}
