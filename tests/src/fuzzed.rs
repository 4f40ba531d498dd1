//! Every parser that reads bytes from a peer or a file, as fuzzers call it: it may refuse, and must not
//! panic, hang or take memory without bound.

use prost::Message as _;
use stillhouse_proto::{
    SequencesView, TensorView,
    checksum::RequestSum,
    decode, encode, limits,
    v1::{
        DType, DescribeResponse, FetchHeadResponse, LabelRequest, LabelStreamRequest,
        LabelStreamResponse, Labels, label_request::Inputs,
        label_stream_response::Result as Answer,
    },
};

/// A fuzz target.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// What it runs.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "wire", run: wire, seeds: seeds::wire },
    Target { name: "safetensors", run: safetensors, seeds: seeds::safetensors },
    Target { name: "idx", run: idx, seeds: seeds::idx },
    Target { name: "label_archive", run: label_archive, seeds: seeds::label_archive },
    Target { name: "cache_entry", run: cache_entry, seeds: seeds::cache_entry },
];

/// Messages of the wire contract: what a server makes of a request, and a student of an answer.
pub fn wire(bytes: &[u8]) {
    teacher_server::fuzzing::request(bytes);
    if let Ok(request) = LabelRequest::decode(bytes) {
        let _ = RequestSum::new(&request);
        match &request.inputs {
            Some(Inputs::Features(tensor)) => drop(TensorView::new(tensor)),
            Some(Inputs::Sequences(sequences)) => drop(SequencesView::new(sequences, 1 << 16)),
            None => {}
        }
        let _ = limits::response_bytes(&request, 1024, 1 << 16, 1024);
    }
    drop(LabelStreamRequest::decode(bytes));
    drop(DescribeResponse::decode(bytes));
    drop(FetchHeadResponse::decode(bytes));
    if let Ok(Some(Answer::Response(response))) =
        LabelStreamResponse::decode(bytes).map(|message| message.result)
    {
        response.labels.iter().for_each(labels);
    }
    if let Ok(message) = Labels::decode(bytes) {
        labels(&message);
    }
}

/// What decodes is what encodes to the same again.
fn labels(message: &Labels) {
    let Ok(batch) = decode(message) else { return };
    if let Ok(again) = encode(&batch, DType::F32) {
        assert_eq!(decode(&again).expect("it was encoded"), batch);
    }
}

/// The weights of a model.
pub fn safetensors(bytes: &[u8]) {
    stillhouse_nn::fuzzing::safetensors(bytes);
}

/// A file of images or labels.
pub fn idx(bytes: &[u8]) {
    student_worker::fuzzing::idx(bytes);
}

/// Captured labels.
pub fn label_archive(bytes: &[u8]) {
    student_worker::fuzzing::label_archive(bytes);
}

/// A row of the cache's disk tier.
pub fn cache_entry(bytes: &[u8]) {
    teacher_server::fuzzing::cache_entry(bytes);
}

/// What is well formed, for fuzzers to begin with.
mod seeds {
    use std::collections::BTreeMap;

    use prost::Message as _;
    use stillhouse_nn::io::{Tensors, tensor_bytes};
    use stillhouse_proto::{
        LabelBatch, SoftLabels, encode,
        v1::{
            DType, DenseEncoding, DenseKind, Encoding, HiddenEncoding, IdsEncoding, LabelRequest,
            LabelResponse, LabelStreamResponse, SampledEncoding, Sequences, TopKEncoding,
            encoding::Kind, label_request::Inputs, label_stream_response::Result as Answer,
        },
    };

    use student_worker::{
        capture::{CapturedTeacher, Manifest, Order},
        data::Augment,
        recipe::teacher::{EncodingName, EncodingSection, LabelType},
    };

    use crate::client::features;

    pub(super) fn wire() -> Vec<Vec<u8>> {
        let dtype = DType::F16.into();
        let kinds = [
            Kind::Dense(DenseEncoding { kind: DenseKind::Logits.into(), dtype }),
            Kind::TopK(TopKEncoding { k: 3, dtype }),
            Kind::Ids(IdsEncoding { ids_per_row: 1, ids: vec![1; 4].into(), dtype }),
            Kind::Sampled(SampledEncoding { draws: 5, seed: 7 }),
            Kind::Hidden(HiddenEncoding { dtype }),
        ];
        let sequences = Sequences::pack(&[vec![1, 2, 3], vec![4]], None).unwrap();
        let inputs = [features(&[0.5; 6], 3), Inputs::Sequences(sequences)];
        let mut all = Vec::new();
        for kind in kinds {
            for inputs in inputs.clone() {
                let request = LabelRequest {
                    id: 1,
                    client: "a".to_owned(),
                    inputs: Some(inputs),
                    temperatures: vec![1.0, 4.0],
                    encoding: Some(Encoding { kind: Some(kind.clone()) }),
                    timeout_ms: 1000,
                    ensemble_rule: 1,
                    traceparent: String::new(),
                };
                all.push(request.encode_to_vec());
            }
        }
        let kind = DenseKind::LogProbabilities;
        let logs = vec![0.5_f32.ln(); 4];
        for labels in [
            SoftLabels::Dense { kind, values: logs.clone() },
            SoftLabels::TopK {
                k: 1,
                ids: vec![0, 1],
                log_probabilities: logs[..2].to_vec(),
                log_tail_mass: logs[..2].to_vec(),
            },
            SoftLabels::Ids {
                ids_per_row: 1,
                log_probabilities: logs[..2].to_vec(),
                log_tail_mass: logs[..2].to_vec(),
            },
            SoftLabels::Sampled {
                draws: 3,
                distinct: vec![1, 2],
                ids: vec![0, 0, 1],
                counts: vec![3, 1, 2],
            },
            SoftLabels::Hidden { width: 2, states: vec![1.0; 4] },
        ] {
            let hidden = matches!(labels, SoftLabels::Hidden { .. });
            let temperature = if hidden { 0.0 } else { 2.0 };
            let batch = LabelBatch { temperature, rows: 2, classes: 2, labels };
            let labels = encode(&batch, DType::F32).unwrap();
            all.push(labels.encode_to_vec());
            let response = LabelResponse { labels: vec![labels], ..LabelResponse::default() };
            let result = Some(Answer::Response(response));
            all.push(LabelStreamResponse { id: 1, result }.encode_to_vec());
        }
        all
    }

    pub(super) fn safetensors() -> Vec<Vec<u8>> {
        let tensors: Tensors = [
            ("weight".to_owned(), (vec![2, 3], vec![1.0; 6])),
            ("bias".to_owned(), (vec![2], vec![0.0; 2])),
        ]
        .into();
        let whole = tensor_bytes(&tensors).unwrap();
        // The same in half as many bytes.
        let header = "{\"weight\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},\
                      \"bias\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[12,16]}}";
        let half = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 16]].concat();
        vec![whole, half]
    }

    pub(super) fn idx() -> Vec<Vec<u8>> {
        let labels = [&[0, 0, 8, 1, 0, 0, 0, 3][..], &[1, 2, 3]].concat();
        let images =
            [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2][..], &[1, 2, 3, 4]].concat();
        // A gzip stream of one stored block: the labels.
        let mut stored = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1, 11, 0, 0xf4, 0xff];
        stored.extend(&labels);
        stored.extend([0; 8]);
        vec![labels, images, stored]
    }

    pub(super) fn label_archive() -> Vec<Vec<u8>> {
        let section = |kind| EncodingSection { kind, ..EncodingSection::default() };
        let encodings = [
            section(EncodingName::Dense),
            EncodingSection { k: Some(2), dtype: LabelType::F16, ..section(EncodingName::TopK) },
            EncodingSection { draws: Some(5), ..section(EncodingName::Sampled) },
            EncodingSection { dtype: LabelType::Bf16, ..section(EncodingName::Hidden) },
        ];
        let archive = |encoding| {
            let manifest = Manifest {
                format: 1,
                complete: true,
                teacher: CapturedTeacher { hidden_size: Some(4), ..CapturedTeacher::default() },
                encoding,
                ensemble: None,
                classes: 4,
                width: 1,
                rows: 1,
                rows_sha256: String::new(),
                rescale_factor: None,
                every_epoch: false,
                slices: Vec::new(),
                order: Order { seed: 1, batch_size: 1, request_rows: 1 },
                augment: Augment::default(),
                files: BTreeMap::new(),
            };
            let manifest = serde_json::to_vec(&manifest).unwrap();
            let length = u16::try_from(manifest.len()).unwrap().to_le_bytes();
            [&length[..], &manifest, &[1; 64]].concat()
        };
        encodings.into_iter().map(archive).collect()
    }

    pub(super) fn cache_entry() -> Vec<Vec<u8>> {
        vec![vec![7; 32], vec![7; 44], vec![]]
    }
}
