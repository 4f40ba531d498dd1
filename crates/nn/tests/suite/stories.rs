//! A real pretrained language model: what it says is known from `llama2.c`.

use std::path::Path;

use stillhouse_nn::{Sampling, TextModel, TokenBatch};

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

/// With keys and values kept, among other prompts or alone, until an end or the longest sequence.
#[test]
fn generation_goes_on_as_whole_sequences_would() {
    let model = TextModel::load(folder()).unwrap();
    let text = std::fs::read_to_string(folder().join("expected_greedy.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    let ids = &expected.ids_greedy_200;
    let prompts: [&[u32]; 3] = [&ids[..1], &ids[..50], &ids[..120]];
    let found = model.generate(&prompts, 80, None, &Sampling::GREEDY).unwrap();
    for (prompt, found) in prompts.iter().zip(&found) {
        assert_eq!(found[..], ids[prompt.len()..prompt.len() + 80], "from {}", prompt.len());
    }
    // 426 is a full stop: each ends behind its first, the others go on.
    let found = model.generate(&prompts, 80, Some(426), &Sampling::GREEDY).unwrap();
    for (prompt, found) in prompts.iter().zip(&found) {
        let end = ids[prompt.len()..].iter().position(|&id| id == 426).unwrap();
        assert_eq!(found[..], ids[prompt.len()..=prompt.len() + end]);
    }
    let sampling = Sampling { temperature: 0.9, top_p: 0.9, seed: 5 };
    let among = model.generate(&prompts, 40, None, &sampling).unwrap();
    let alone = model.generate(&prompts[..1], 40, None, &sampling).unwrap();
    assert_eq!(among[0], alone[0]);
    assert_ne!(among[0], model.generate(&prompts[..1], 40, None, &Sampling::GREEDY).unwrap()[0]);
    let other = Sampling { seed: 6, ..sampling };
    assert_ne!(among, model.generate(&prompts, 40, None, &other).unwrap());
    // The model has 512 positions.
    let long: Vec<u32> = (0..505).map(|i| 3 + i % 500).collect();
    let found = model.generate(&[&long, &long[..500]], 20, None, &Sampling::GREEDY).unwrap();
    assert_eq!((found[0].len(), found[1].len()), (7, 12));
    assert!(model.generate(&[&[512]], 1, None, &Sampling::GREEDY).is_err());
    assert!(model.generate(&[&[]], 1, None, &Sampling::GREEDY).is_err());
}
