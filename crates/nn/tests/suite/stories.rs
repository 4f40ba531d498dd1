//! A real pretrained language model: what it says is known from `llama2.c`.

use std::path::Path;

use stillhouse_nn::{TextModel, TokenBatch};

#[derive(serde::Deserialize)]
struct Expected {
    ids_greedy_200: Vec<u32>,
    logits_after_bos_first8: Vec<f32>,
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/stories260K"))
}

#[test]
fn greedy_continuation_and_logits_are_the_published_ones() {
    let model = TextModel::load(folder()).unwrap();
    assert_eq!(model.parameters(), 260_032);
    let text = std::fs::read_to_string(folder().join("expected_greedy.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    let ids = &expected.ids_greedy_200;
    let batch = TokenBatch { ids: &ids[..ids.len() - 1], lengths: &[ids.len() as u32 - 1] };
    let hidden = model.hidden(&batch, None).unwrap();
    let logits = model.packed_head().logits(&hidden).unwrap();
    let rows: Vec<&[f32]> = logits.chunks_exact(512).collect();
    for (found, expected) in rows[0].iter().zip(&expected.logits_after_bos_first8) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
    for (position, row) in rows.iter().enumerate() {
        let largest = (0..512).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        assert_eq!(largest as u32, ids[position + 1], "after token {position}");
    }
}

/// The same sequence alone, behind others and in front of others; some of its positions or all.
#[test]
fn hidden_states_do_not_depend_on_the_batch() {
    let model = TextModel::load(folder()).unwrap();
    let ids: Vec<u32> = (0..90).map(|i| 3 + i * 37 % 500).collect();
    let alone = model.hidden(&TokenBatch { ids: &ids, lengths: &[90] }, None).unwrap();
    let d = model.config().hidden_size();
    let packed = [&ids[..7], &ids, &ids[3..60]].concat();
    let batch = TokenBatch { ids: &packed, lengths: &[7, 90, 57] };
    let all = model.hidden(&batch, None).unwrap();
    assert_eq!(all[7 * d..97 * d], alone);
    assert_eq!(all[..7 * d], alone[..7 * d]);
    let some = model.hidden(&batch, Some(&[7, 50, 96])).unwrap();
    assert_eq!(some, [&alone[..d], &alone[43 * d..44 * d], &alone[89 * d..]].concat());
}

#[test]
fn batches_that_do_not_fit_are_named() {
    let model = TextModel::load(folder()).unwrap();
    let refusal = |ids: &[u32], lengths: &[u32], labelled: Option<&[usize]>| {
        model.hidden(&TokenBatch { ids, lengths }, labelled).unwrap_err().to_string()
    };
    assert_eq!(refusal(&[1, 512], &[2], None), "token 1 is 512; expected 0 to 511");
    let long = refusal(&[1; 513], &[513], None);
    assert_eq!(long, "sequence has 513 elements; expected 1 to 512 tokens");
    assert!(refusal(&[1, 2], &[2, 0], None).contains("sequence has 0 elements"));
    assert!(refusal(&[1, 2], &[3], None).contains("token ids has 2 elements; expected 3 ids"));
    assert!(refusal(&[], &[], None).contains("at least 1"));
    for labelled in [&[2][..], &[1, 0], &[0, 0], &[]] {
        let error = refusal(&[1, 2], &[2], Some(labelled));
        assert!(error.contains("expected at least 1 position, ascending, below 2"), "{error}");
    }
}
