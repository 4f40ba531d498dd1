//! Classifiers of token sequences, served as teachers over gRPC: one label for each sequence, as the model
//! itself gives it, and as a pair of them.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use stillhouse_nn::{TextModel, TextTrainer, TextTrainerConfig, TokenBatch, TransformerConfig};
use stillhouse_proto::{
    SoftLabels, decode,
    v1::{
        DType, DenseEncoding, DenseKind, DescribeRequest, LabelRequest, Sequences, Task,
        encoding::Kind, label_request::Inputs,
    },
};
use stillhouse_tests::{
    client::{self, Client},
    process::{Teacher, UNCACHED},
};
use tokio::runtime::Runtime;

const TOKENIZER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/stories260K/tokenizer.json");

/// A small classifier of random weights, as a folder.
fn model(folder: &Path, json: &str, seed: u64) -> PathBuf {
    let config = TransformerConfig::from_json(serde_json::from_str(json).unwrap()).unwrap();
    let config = TextTrainerConfig { seed, ..TextTrainerConfig::new(config, 1) };
    let folder = folder.join(format!("model-{seed}"));
    fs::create_dir(&folder).unwrap();
    TextTrainer::new(config).unwrap().save_model(&folder).unwrap();
    fs::copy(TOKENIZER, folder.join("tokenizer.json")).unwrap();
    folder
}

fn request(rows: &[&[u32]], labelled: Option<&[bool]>, kind: DenseKind) -> LabelRequest {
    let dense = Kind::Dense(DenseEncoding { kind: kind.into(), dtype: DType::F32.into() });
    LabelRequest {
        inputs: Some(Inputs::Sequences(Sequences::pack(rows, labelled).unwrap())),
        encoding: client::encoding(dense),
        ..client::request(0, &[0.0], 1)
    }
}

fn dense(runtime: &Runtime, client: &mut Client, request: LabelRequest) -> Vec<f32> {
    let response = runtime.block_on(client.label(request)).unwrap().into_inner();
    assert!(response.row_errors.is_empty());
    match decode(&response.labels[0]).unwrap().labels {
        SoftLabels::Dense { values, .. } => values,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_family_gives_a_label_for_each_sequence() {
    let bert = r#""hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 520, "max_position_embeddings": 48, "num_labels": 3"#;
    let distilbert = r#""dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 520,
        "max_position_embeddings": 48, "num_labels": 3"#;
    let families = [("bert", bert, 48), ("roberta", bert, 46), ("distilbert", distilbert, 48)];
    let runtime = Runtime::new().unwrap();
    for (family, keys, longest) in families {
        let folder = tempfile::tempdir().unwrap();
        let folder = model(folder.path(), &format!(r#"{{"model_type": "{family}", {keys}}}"#), 7);
        let teacher = Teacher::start(&folder, &UNCACHED);
        let mut client = runtime.block_on(client::connect(teacher.address()));
        let described = runtime.block_on(client.describe(DescribeRequest {})).unwrap().into_inner();
        assert_eq!((described.task(), described.classes), (Task::Classification, 3), "{family}");

        let ids: Vec<u32> = (0..40).map(|i| 2 + 11 * i).collect();
        // An id that the embedding has and the tokenizer has not: padding of the table.
        let rows: [&[u32]; 3] = [&ids[..17], &[519], &ids];
        let logits = dense(&runtime, &mut client, request(&rows, None, DenseKind::Logits));
        let own = TextModel::load(&folder).unwrap();
        let batch = TokenBatch { ids: &rows.concat(), lengths: &[17, 1, 40] };
        let hidden = own.hidden(&batch, None).unwrap();
        assert_eq!(logits, own.packed_head().logits(&hidden).unwrap(), "{family}");
        assert_eq!(logits.len(), 9);
        let alone = dense(&runtime, &mut client, request(&rows[2..], None, DenseKind::Logits));
        assert_eq!(alone, logits[6..], "{family}");

        let mut refused = |rows: &[&[u32]], labelled: Option<&[bool]>| {
            let request = request(rows, labelled, DenseKind::Logits);
            let error = runtime.block_on(client.label(request)).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            error.message().to_owned()
        };
        let error = refused(&[&ids[..2]], Some(&[true, false]));
        assert!(error.contains("label_mask"), "{error}");
        let error = refused(&[&[520]], None);
        assert!(error.contains("520"), "{error}");
        let error = refused(&[&vec![5; longest + 1]], None);
        assert!(error.contains(&format!("{}", longest + 1)), "{error}");
    }
}

/// Two whose tables are padded differently: what one of them has no row for is refused, and does not fail
/// what others ask at the same time.
#[test]
fn an_ensemble_takes_what_each_member_takes() {
    let folder = tempfile::tempdir().unwrap();
    let json = |words: usize| {
        format!(
            r#"{{"model_type": "bert", "hidden_size": 16, "intermediate_size": 32,
                "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": {words},
                "max_position_embeddings": 48, "num_labels": 2}}"#
        )
    };
    let models = [model(folder.path(), &json(528), 1), model(folder.path(), &json(520), 2)];
    let runtime = Runtime::new().unwrap();
    let second = models[1].to_str().unwrap();
    let teacher = Teacher::start(&models[0], &["--model", second]);
    let mut client = runtime.block_on(client::connect(teacher.address()));
    let error =
        runtime.block_on(client.label(request(&[&[525]], None, DenseKind::LogProbabilities)));
    assert_eq!(error.unwrap_err().code(), tonic::Code::InvalidArgument);
    let rows: [&[u32]; 1] = [&[1, 300, 519]];
    let found = dense(&runtime, &mut client, request(&rows, None, DenseKind::LogProbabilities));
    let mut mean = [0.0; 2];
    for folder in &models {
        let own = TextModel::load(folder).unwrap();
        let batch = TokenBatch { ids: rows[0], lengths: &[3] };
        let logits = own.packed_head().logits(&own.hidden(&batch, None).unwrap()).unwrap();
        let z = [f64::from(logits[0]), f64::from(logits[1])];
        let sum = z[0].exp() + z[1].exp();
        (0..2).for_each(|class| mean[class] += z[class].exp() / sum / 2.0);
    }
    for (found, p) in found.iter().zip(mean) {
        assert!((f64::from(*found) - p.ln()).abs() < 1e-6, "{found} {p}");
    }
}
