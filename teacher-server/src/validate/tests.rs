//! Every way a request can be wrong, and what it is told.

use bytes::Bytes;
use stillhouse_proto::v1::{
    DenseEncoding, HiddenEncoding, IdsEncoding, SampledEncoding, Sequences, Tensor, TopKEncoding,
};

use super::*;

fn contract() -> Contract {
    Contract {
        accepts: Accepts::Features { width: 3, rescale_factor: 1.0 / 255.0 },
        classes: 5,
        hidden_size: 4,
        state_width: 4,
        members: 1,
        default_rule: Rule::Arithmetic,
        limits: Limits { max_rows: 8, max_message_bytes: 4096, ..Limits::default() },
    }
}

fn features(dtype: DType, shape: &[u64], bytes: usize) -> Option<Inputs> {
    let data = Bytes::from(vec![0; bytes]);
    Some(Inputs::Features(Tensor { dtype: dtype.into(), shape: shape.to_vec(), data }))
}

fn wrap(kind: Kind) -> Option<v1::Encoding> {
    Some(v1::Encoding { kind: Some(kind) })
}

fn good() -> LabelRequest {
    LabelRequest {
        id: 7,
        client: "student".to_owned(),
        inputs: features(DType::F32, &[2, 3], 24),
        temperatures: vec![1.0, 4.0],
        encoding: wrap(Kind::Dense(DenseEncoding::default())),
        timeout_ms: 0,
        ensemble_rule: 0,
        traceparent: String::new(),
    }
}

fn ids(ids_per_row: u32, ids: &[u32]) -> Option<v1::Encoding> {
    let ids = stillhouse_proto::request::pack_ids(ids);
    wrap(Kind::Ids(IdsEncoding { ids_per_row, ids, dtype: 0 }))
}

#[track_caller]
fn refuses(change: impl FnOnce(&mut LabelRequest), expected: &[&str]) {
    let mut request = good();
    change(&mut request);
    let error = contract().accept(request).unwrap_err();
    assert!(matches!(error, ServeError::Invalid { .. }), "{error:?}");
    let text = error.to_string();
    for part in expected {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[test]
fn a_good_request_is_accepted_as_it_is() {
    let accepted = contract().accept(good()).unwrap();
    assert_eq!((accepted.id, accepted.rows, accepted.client.as_str()), (7, 2, "student"));
    let dense = Encoding::Dense { kind: DenseKind::LogProbabilities, dtype: DType::F32 };
    assert_eq!(accepted.encoding, dense, "unset kind and dtype have defaults");
    assert_eq!(accepted.timeout, None);
}

#[test]
fn u8_features_are_rescaled_and_narrow_floats_widened() {
    let mut request = good();
    let data = Bytes::from_static(&[0, 51, 255]);
    request.inputs =
        Some(Inputs::Features(Tensor { dtype: DType::U8.into(), shape: vec![1, 3], data }));
    let accepted = contract().accept(request).unwrap();
    let rescaled = [0.0, 51.0 * (1.0 / 255.0_f64) as f32, 255.0 * (1.0 / 255.0_f64) as f32];
    let input = |accepted: Accepted| contract().input(&accepted.input, &[0]).unwrap();
    assert_eq!(input(accepted), JobInput::Features { width: 3, values: rescaled.to_vec() });

    let mut request = good();
    let data = Bytes::from_static(&[0x80, 0x3f, 0, 0, 0x80, 0xbf]);
    request.inputs =
        Some(Inputs::Features(Tensor { dtype: DType::Bf16.into(), shape: vec![1, 3], data }));
    let accepted = contract().accept(request).unwrap();
    let widened = vec![1.0, 0.0, -1.0];
    assert_eq!(input(accepted), JobInput::Features { width: 3, values: widened });
}

#[test]
fn temperatures_out_of_range() {
    for (value, shown) in
        [(0.0, "0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-0.0, "-0")]
    {
        refuses(
            |request| request.temperatures[1] = value,
            &["temperatures[1]", &format!("is {shown};"), "a finite number above 0"],
        );
    }
    refuses(|request| request.temperatures = vec![1.0; 9], &["temperatures", "9", "1 to 8"]);
    refuses(|request| request.temperatures.clear(), &["temperatures", "a list of 0", "1 to 8"]);
}

#[test]
fn features_that_do_not_fit() {
    use DType::{F32, Unspecified};
    refuses(|r| r.inputs = None, &["inputs", "not set"]);
    refuses(|r| r.inputs = Some(Inputs::Sequences(Sequences::default())), &["inputs", "sequences"]);
    refuses(|r| r.inputs = features(F32, &[0, 3], 0), &["features.shape[0]", "0 rows", "1 to 8"]);
    refuses(|r| r.inputs = features(F32, &[], 0), &["features.shape[0]", "0 rows"]);
    refuses(|r| r.inputs = features(F32, &[9, 3], 108), &["features.shape[0]", "9 rows", "1 to 8"]);
    refuses(|r| r.inputs = features(F32, &[2, 4], 32), &["features.shape", "[2, 4]", "[rows, 3]"]);
    refuses(|r| r.inputs = features(F32, &[2, 3, 1], 24), &["features.shape", "[rows, 3]"]);
    refuses(|r| r.inputs = features(F32, &[2, 3], 23), &["features", "23", "24"]);
    refuses(|r| r.inputs = features(Unspecified, &[2, 3], 24), &["features", "dtype"]);
    refuses(
        |r| {
            let data = Bytes::from(vec![0; 24]);
            r.inputs = Some(Inputs::Features(Tensor { dtype: 77, shape: vec![2, 3], data }));
        },
        &["features", "dtype", "77"],
    );
}

#[test]
fn encodings_out_of_range() {
    let top_k = |k| wrap(Kind::TopK(TopKEncoding { k, dtype: 0 }));
    let sampled = |draws| wrap(Kind::Sampled(SampledEncoding { draws, seed: 0 }));
    refuses(|r| r.encoding = None, &["encoding", "not set", "one of dense"]);
    refuses(|r| r.encoding = top_k(0), &["encoding.top_k.k", "is 0", "1 to the 5 classes"]);
    refuses(|r| r.encoding = top_k(6), &["encoding.top_k.k", "is 6", "1 to the 5 classes"]);
    refuses(|r| r.encoding = sampled(0), &["encoding.sampled.draws", "is 0", "1 to 65535"]);
    refuses(|r| r.encoding = sampled(65_536), &["encoding.sampled.draws", "65536"]);
    refuses(
        |r| r.encoding = wrap(Kind::Dense(DenseEncoding { kind: 9, dtype: 0 })),
        &["encoding.dense.kind", "9"],
    );
    refuses(
        |r| r.encoding = wrap(Kind::Hidden(HiddenEncoding { dtype: DType::U8.into() })),
        &["encoding.hidden.dtype", "U8", "F32, F16 or BF16"],
    );
}

#[test]
fn the_rule_is_the_requests_or_the_servers() {
    use EnsembleRule::{Arithmetic, Geometric, Unspecified};
    for (default, set, expected) in [
        (Rule::Arithmetic, Unspecified, Rule::Arithmetic),
        (Rule::Geometric, Unspecified, Rule::Geometric),
        (Rule::Geometric, Arithmetic, Rule::Arithmetic),
        (Rule::Arithmetic, Geometric, Rule::Geometric),
    ] {
        let contract = Contract { default_rule: default, ..contract() };
        let request = LabelRequest { ensemble_rule: set.into(), ..good() };
        assert_eq!(contract.accept(request).unwrap().rule, expected);
    }
    refuses(|r| r.ensemble_rule = 3, &["ensemble_rule", "is 3", "an EnsembleRule, 0 to 2"]);
}

#[test]
fn several_models_have_no_hidden_state_and_their_arithmetic_mean_no_logits() {
    let several = Contract { members: 3, hidden_size: 0, ..contract() };
    let ask = |kind: Kind, rule: EnsembleRule| {
        let request = LabelRequest { encoding: wrap(kind), ensemble_rule: rule.into(), ..good() };
        several.accept(request).map_err(|error| error.to_string())
    };
    let dense = |kind: DenseKind| Kind::Dense(DenseEncoding { kind: kind.into(), dtype: 0 });
    for rule in [EnsembleRule::Unspecified, EnsembleRule::Arithmetic, EnsembleRule::Geometric] {
        let error = ask(Kind::Hidden(HiddenEncoding::default()), rule).unwrap_err();
        let expected =
            "encoding: is hidden; must be one of dense, top_k, ids, sampled: the 3 models";
        assert!(error.starts_with(expected), "{error}");
        assert!(ask(dense(DenseKind::Probabilities), rule).is_ok());
        let logits = ask(dense(DenseKind::Logits), rule);
        if rule == EnsembleRule::Geometric {
            assert!(logits.is_ok());
            continue;
        }
        let error = logits.unwrap_err();
        assert!(error.starts_with("encoding.dense.kind: is LOGITS; must be LOG_PROB"), "{error}");
        assert!(error.contains("or ensemble_rule GEOMETRIC"), "{error}");
    }
    let one = LabelRequest { encoding: wrap(dense(DenseKind::Logits)), ..good() };
    assert!(contract().accept(one).is_ok(), "a single model has logits under either rule");
}

#[test]
fn ids_out_of_range() {
    refuses(|r| r.encoding = ids(0, &[]), &["ids_per_row", "is 0", "1 to the 5 classes"]);
    refuses(
        |r| r.encoding = ids(2, &[0, 1, 2]),
        &["encoding.ids: length of ids is 12 bytes", "16"],
    );
    refuses(|r| r.encoding = ids(2, &[0, 1, 2, 5]), &["encoding.ids", "ids[3] is 5", "0 to 4"]);
    refuses(|r| r.encoding = ids(2, &[0, 1, 2, 2]), &["encoding.ids", "ids of row 1 is 2 twice"]);
    let mut request = good();
    request.encoding = ids(2, &[0, 1, 1, 0]);
    assert!(contract().accept(request).is_ok(), "the same id may come in two rows");
}

#[test]
fn a_reply_too_large_for_one_message_is_refused_before_it_is_computed() {
    let mut contract = contract();
    contract.classes = 400;
    let mut request = good();
    request.temperatures = vec![1.0; 2];
    let error = contract.accept(request.clone()).unwrap_err().to_string();
    assert!(error.contains("at most 4096 bytes"), "{error}");
    request.temperatures = vec![1.0];
    assert!(contract.accept(request).is_ok());
}

#[test]
fn more_draws_than_a_processor_should_make_for_one_request_are_refused() {
    let mut contract = contract();
    contract.limits = Limits::default();
    let mut request = good();
    request.inputs = features(DType::U8, &[200, 3], 600);
    let sampled = |draws| wrap(Kind::Sampled(SampledEncoding { draws, seed: 0 }));
    request.encoding = sampled(65_535);
    let error = contract.accept(request.clone()).unwrap_err().to_string();
    assert!(error.contains("65535 for each of 200 rows and 2 temperatures"), "{error}");
    request.encoding = sampled(1000);
    assert!(contract.accept(request).is_ok());
}

#[test]
fn a_client_name_has_a_longest_length() {
    refuses(|r| r.client = "x".repeat(129), &["client", "129 bytes", "at most 128"]);
}

#[test]
fn a_shape_of_many_dimensions_is_told_in_few_words() {
    let shape = vec![1; 100_000];
    let request = LabelRequest { inputs: features(DType::F32, &shape, 4), ..good() };
    let error = contract().accept(request).unwrap_err();
    assert!(error.to_string().contains("of 100000 dimensions"), "{error}");
    let told = ServeError::at("features", "x".repeat(1 << 20)).to_label_error().message;
    assert_eq!(told.len(), stillhouse_proto::limits::MAX_ERROR_BYTES);
}

#[test]
fn what_a_request_holds_covers_its_rows_their_outputs_and_the_answer() {
    let rows = 2_u64;
    let (input, logits, hidden) = (3 * 4, 5 * 4, 4 * 4);
    let dense = contract().accept(good()).unwrap().bytes;
    // Two temperatures.
    assert!(dense >= rows * (input + 2 * (logits + hidden) + 2 * logits), "{dense}");
    let asked = LabelRequest { encoding: wrap(Kind::Hidden(HiddenEncoding::default())), ..good() };
    let asked = contract().accept(asked).unwrap().bytes;
    assert!(asked >= rows * (input + logits + hidden + hidden), "{asked}");
    // Every member's logits count, the answer once.
    let three = Contract { members: 3, ..contract() };
    assert_eq!(three.accept(good()).unwrap().bytes, dense + rows * 2 * 2 * logits);
    // Rows without a finite output are answered with words.
    let one = LabelRequest { temperatures: vec![1.0], ..good() };
    let one = contract().accept(one).unwrap().bytes;
    assert!(one >= rows * (input + logits + ROW_ERROR as u64), "{one}");
}

/// A language model of 5 words that takes up to 4 tokens in a sequence, 6 in a request.
fn text(every_position: bool) -> Contract {
    let limits = Limits { max_rows: 3, max_tokens: 6, ..contract().limits };
    let (max_length, vocabulary, tokenizer) = (4, 5, [7; 32]);
    let accepts = Accepts::Sequences { max_length, vocabulary, tokenizer, every_position };
    Contract { accepts, limits, ..contract() }
}

fn sequences(rows: &[&[u32]], labelled: Option<&[bool]>) -> LabelRequest {
    let sequences = Sequences::pack(rows, labelled).unwrap();
    LabelRequest { inputs: Some(Inputs::Sequences(sequences)), ..good() }
}

#[test]
fn sequences_ask_for_labels_of_the_positions_that_are_marked() {
    let marks = [false, true, true, false, true];
    let accepted = text(true).accept(sequences(&[&[1, 2, 3], &[4, 0]], Some(&marks))).unwrap();
    assert_eq!(accepted.rows, 3);
    let (ids, lengths) = (vec![1, 2, 3, 4, 0], vec![3, 2]);
    let expected = JobInput::Tokens { ids, lengths, labelled: vec![1, 2, 4] };
    assert_eq!(expected.cost(), 5);
    assert_eq!(text(true).input(&accepted.input, &[0, 1]).unwrap(), expected);
    let second = JobInput::Tokens { ids: vec![4, 0], lengths: vec![2], labelled: vec![1] };
    assert_eq!(text(true).input(&accepted.input, &[1]).unwrap(), second);
    let labels = |units: Vec<Unit>| units.iter().map(|unit| unit.labels).collect::<Vec<_>>();
    assert_eq!(labels(text(true).units(&accepted.input, None).unwrap()), [2, 1]);

    let accepted = text(true).accept(sequences(&[&[1, 2, 3]], None)).unwrap();
    assert_eq!(accepted.rows, 3);

    // A classifier of sequences gives each one label.
    let accepted = text(false).accept(sequences(&[&[1, 2, 3], &[4, 0]], None)).unwrap();
    assert_eq!(accepted.rows, 2);
    let expected =
        JobInput::Tokens { ids: vec![1, 2, 3, 4, 0], lengths: vec![3, 2], labelled: vec![] };
    assert_eq!(text(false).input(&accepted.input, &[0, 1]).unwrap(), expected);
    assert_eq!(labels(text(false).units(&accepted.input, None).unwrap()), [1, 1]);
}

#[test]
fn units_share_a_key_where_their_labels_are_of_the_same_output() {
    let keyer = Keyer::new(&[1; 32]);
    let keys = |contract: &Contract, request: LabelRequest| -> Vec<Key> {
        let accepted = contract.accept(request).unwrap();
        let units = contract.units(&accepted.input, Some(&keyer)).unwrap();
        units.into_iter().map(|unit| unit.key.unwrap()).collect()
    };
    let rows = Tensor::from_f32(&[0.0, 1.0, 2.0, 0.0, 1.0, 3.0], DType::F32, &[2, 3]).unwrap();
    let rows = LabelRequest { inputs: Some(Inputs::Features(rows)), ..good() };
    let own = keys(&contract(), rows.clone());
    assert_eq!(own, keys(&contract(), LabelRequest { temperatures: vec![9.0], ..rows }));
    assert_ne!(own[0], own[1]);

    let model = text(true);
    let all = keys(&model, sequences(&[&[1, 2], &[1, 2], &[2, 1]], None));
    assert!(all[0] == all[1] && all[0] != all[2]);
    let marks = [true, true, true, false, false, true];
    let some = keys(&model, sequences(&[&[1, 2], &[1, 2], &[1, 2]], Some(&marks)));
    assert_eq!(some[0], all[0], "all of it is labelled, with a mask or without");
    assert!(some[1] != some[0] && some[2] != some[0] && some[1] != some[2]);
}

#[test]
fn sequences_that_do_not_fit_are_named() {
    let refusal = |contract: Contract, request: LabelRequest| {
        let error = contract.accept(request).unwrap_err();
        assert!(matches!(error, ServeError::Invalid { .. }), "{error:?}");
        error.to_string()
    };
    for (rows, expected) in [
        (&[&[1, 2, 3, 4, 0][..]][..], "sequences.lengths[0]: is 5; must be 1 to 4"),
        (&[&[1], &[1], &[1], &[1]], "sequences.lengths: is of 4 rows; must be of 1 to 3"),
        (&[&[1, 2, 3, 4], &[1, 2, 3]], "sequences.lengths: is 7 tokens in all; must be at most 6"),
        (&[&[1, 5]], "sequences: token_ids[1] is 5; must be below the vocabulary's 5"),
        (&[], "sequences: lengths is empty; must be of at least 1 row"),
        (&[&[1], &[]], "sequences: lengths[1] is 0; must be at least 1"),
    ] {
        assert_eq!(refusal(text(true), sequences(rows, None)), expected);
    }
    let error = refusal(text(true), sequences(&[&[1, 2]], Some(&[false, false])));
    assert!(error.contains("label_mask is 0 throughout"), "{error}");
    let error = refusal(text(false), sequences(&[&[1, 2]], Some(&[true, false])));
    let expected = "must be empty: this teacher gives every sequence one label";
    assert!(error.contains("sequences.label_mask: is 1 bytes long") && error.contains(expected));
    let error = refusal(text(true), good());
    assert_eq!(error, "inputs: is features; must be sequences: this teacher takes token ids");
    let error = refusal(text(true), LabelRequest { inputs: None, ..good() });
    assert_eq!(error, "inputs: is not set; must be sequences");
}
