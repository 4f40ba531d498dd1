use super::*;

fn parse(text: &str) -> Result<TransformerConfig, String> {
    TransformerConfig::parse(Path::new("m/config.json"), text).map_err(|error| error.to_string())
}

fn spec(text: &str) -> Spec {
    parse(text).unwrap().spec
}

#[test]
fn a_text_has_one_label() {
    for kind in ["regression", "multi_label_classification"] {
        let text = format!(r#"{{"model_type": "bert", "problem_type": "{kind}"}}"#);
        let error = parse(&text).unwrap_err();
        assert!(error.contains("problem_type") && error.contains("single_label"), "{error}");
    }
    spec(r#"{"model_type": "bert", "problem_type": "single_label_classification"}"#);
    spec(r#"{"model_type": "bert", "problem_type": null}"#);
}

/// Rates in the order of `DropoutRates`, as transformers 5.24 reads and places them.
#[test]
fn dropout_is_where_transformers_has_it() {
    let rates = |text: &str| {
        let d = spec(text).dropout;
        [d.embedding, d.weights, d.attention, d.feed_forward, d.head_input, d.head]
    };
    let bert = |kind: &str, keys: &str| {
        rates(&format!(r#"{{"model_type": "{kind}", "hidden_dropout_prob": 0.25, {keys}}}"#))
    };
    let keys = r#""attention_probs_dropout_prob": 0.5, "classifier_dropout": 0.75"#;
    assert_eq!(bert("bert", keys), [0.25, 0.5, 0.25, 0.25, 0.0, 0.75]);
    assert_eq!(bert("roberta", keys), [0.25, 0.5, 0.25, 0.25, 0.75, 0.75]);
    let null = r#""classifier_dropout": null"#;
    assert_eq!(bert("bert", null), [0.25, 0.1, 0.25, 0.25, 0.0, 0.25]);
    assert_eq!(rates(r#"{"model_type": "roberta"}"#), [0.1; 6]);
    let distilbert = r#"{"model_type": "distilbert", "dropout": 0.25, "attention_dropout": 0.5,
        "seq_classif_dropout": 0.75}"#;
    assert_eq!(rates(distilbert), [0.25, 0.5, 0.0, 0.25, 0.0, 0.75]);
    assert_eq!(rates(r#"{"model_type": "distilbert"}"#), [0.1, 0.1, 0.0, 0.1, 0.0, 0.2]);
    for kind in ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"] {
        assert_eq!(rates(&format!(r#"{{"model_type": "{kind}"}}"#)), [0.0; 6]);
        let given = format!(r#"{{"model_type": "{kind}", "attention_dropout": 0.5}}"#);
        assert_eq!(rates(&given), [0.0, 0.5, 0.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn keys_that_are_absent_have_the_defaults_of_transformers() {
    let llama = spec(r#"{"model_type": "llama"}"#);
    assert_eq!((llama.vocab, llama.hidden, llama.intermediate), (32_000, 4096, 11_008));
    assert_eq!((llama.heads, llama.kv_heads, llama.head_dim), (32, 32, 128));
    assert_eq!(llama.layers, vec![LayerSpec { window: None, rope: 0 }; 32]);
    assert_eq!(llama.task, Task::LanguageModel { tied: false, softcap: None });
    let mistral = spec(r#"{"model_type": "mistral"}"#);
    assert_eq!((mistral.kv_heads, mistral.layers[0].window), (8, Some(4096)));
    let mistral = spec(r#"{"model_type": "mistral", "sliding_window": null}"#);
    assert_eq!(mistral.layers[0].window, None);
    let qwen2 = spec(r#"{"model_type": "qwen2", "sliding_window": 8}"#);
    assert!(
        qwen2.qkv_bias && !qwen2.output_bias && qwen2.layers.iter().all(|l| l.window.is_none())
    );
    let qwen3 = spec(
        r#"{"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16,
        "num_key_value_heads": 8}"#,
    );
    assert!(qwen3.qk_norm && !qwen3.qkv_bias && qwen3.head_dim == 128 && qwen3.q_width() == 2048);
    let gemma2 = spec(r#"{"model_type": "gemma2"}"#);
    assert_eq!(gemma2.task, Task::LanguageModel { tied: true, softcap: Some(30.0) });
    assert_eq!((gemma2.attention_softcap, gemma2.attention_scale), (Some(50.0), 1.0 / 16.0));
    let windows: Vec<_> = gemma2.layers[..3].iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [Some(4096), None, Some(4096)]);
    let gemma3 = spec(r#"{"model_type": "gemma3_text"}"#);
    let ropes: Vec<_> = gemma3.layers[..7].iter().map(|layer| layer.rope).collect();
    assert_eq!(ropes, [1, 1, 1, 1, 1, 0, 1]);
    assert_eq!(gemma3.task, Task::LanguageModel { tied: true, softcap: None });
    let bert = spec(r#"{"model_type": "bert", "id2label": {"0": "a", "1": "b", "2": "c"}}"#);
    assert_eq!((bert.classes(), bert.hidden, bert.layers.len()), (3, 768, 12));
    let roberta = spec(r#"{"model_type": "roberta", "max_position_embeddings": 514}"#);
    assert_eq!((roberta.max_positions, roberta.learned.unwrap().first), (512, 2));
    let distilbert = spec(r#"{"model_type": "distilbert", "n_layers": 3}"#);
    assert_eq!((distilbert.layers.len(), distilbert.norm_eps), (3, 1e-12));
}

/// Llama 3.1's own numbers, and what `transformers.modeling_rope_utils` makes of them.
#[test]
fn rotations_may_stand_in_either_place() {
    let old = r#"{"model_type": "llama", "head_dim": 128, "rope_theta": 500000.0, "rope_scaling":
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192}}"#;
    let new = r#"{"model_type": "llama", "head_dim": 128, "rope_parameters":
        {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#;
    let (old, new) = (spec(old), spec(new));
    assert_eq!(old, new);
    let frequencies = &old.ropes[0].inverse_frequencies;
    assert_eq!(frequencies.len(), 64);
    for (i, expected) in [(0, 1.0f32), (31, 8.567_515e-4), (33, 3.126_936_5e-4), (63, 3.068_926e-7)]
    {
        let off = (frequencies[i] / expected - 1.0).abs();
        assert!(off < 1e-5, "{i}: {} {expected}", frequencies[i]);
    }
}

#[test]
fn faults_name_key_value_and_range() {
    let cases = [
        (r#"{"model_type": "gpt2"}"#, "model_type is \"gpt2\"; supported: llama, mistral"),
        (r#"{"model_type": "gemma3"}"#, "model_type is \"gemma3\"; supported: "),
        (r#"{"hidden_size": 8}"#, "model_type is missing; expected one of llama"),
        (
            r#"{"model_type": "llama", "hidden_size": "big"}"#,
            "hidden_size is \"big\"; expected a whole number, 0 or more",
        ),
        (r#"{"model_type": "llama", "hidden_size": 0}"#, "hidden_size is 0; expected at least 1"),
        (
            r#"{"model_type": "llama", "num_attention_heads": 3}"#,
            "hidden_size is missing; expected a multiple of num_attention_heads",
        ),
        (
            r#"{"model_type": "llama", "num_key_value_heads": 5}"#,
            "num_key_value_heads is 5; expected a divisor of the 32 heads",
        ),
        (
            r#"{"model_type": "llama", "num_hidden_layers": 4000000000}"#,
            "num_hidden_layers is 4000000000; expected 0 to 1024",
        ),
        (
            r#"{"model_type": "llama", "vocab_size": 16777216, "hidden_size": 1048576, "head_dim": 64}"#,
            "number of parameters",
        ),
        (
            r#"{"model_type": "llama", "hidden_act": "mish"}"#,
            "hidden_act is \"mish\"; expected relu",
        ),
        (
            r#"{"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}"#,
            "rope_scaling.type is \"dynamic\"; expected default, linear, llama3 or yarn",
        ),
        (
            r#"{"model_type": "llama", "rope_scaling": {"rope_type": "linear"}}"#,
            "rope_scaling.factor is missing; expected a finite number above 0",
        ),
        (
            r#"{"model_type": "llama", "rope_theta": -1}"#,
            "rope_theta is -1; expected a finite number above 0",
        ),
        (
            r#"{"model_type": "llama", "head_dim": 4611686018427387904}"#,
            "head_dim is 4611686018427387904; expected 1 to 1024",
        ),
        (
            r#"{"model_type": "llama", "hidden_size": 1152921504606846976}"#,
            "hidden_size is 1152921504606846976; expected 1 to 16777216",
        ),
        (
            r#"{"model_type": "llama", "num_attention_heads": 8192, "hidden_size": 8192}"#,
            "num_attention_heads is 8192; expected 1 to 4096",
        ),
        (
            r#"{"model_type": "llama", "rope_parameters": {"rope_theta": 1e4},
                "rope_scaling": {"type": "linear", "factor": 2.0}}"#,
            "rope_scaling is {\"factor\":2.0,\"type\":\"linear\"}; expected none beside rope_parameters",
        ),
        (
            r#"{"model_type": "qwen2", "rope_parameters": {"full_attention": {"rope_theta": 1e6}}}"#,
            "rope_parameters.full_attention is {\"rope_theta\":1000000.0}; expected none",
        ),
        (
            r#"{"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e6}}"#,
            "rope_parameters.rope_theta is 1000000.0; expected none here",
        ),
        (
            r#"{"model_type": "llama", "partial_rotary_factor": 0.5}"#,
            "partial_rotary_factor is 0.5; expected 1: the whole head is rotated",
        ),
        (
            r#"{"model_type": "llama", "original_max_position_embeddings": 64, "rope_scaling":
                {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}}"#,
            "original_max_position_embeddings is 64; expected the number that the rotation's",
        ),
        (
            r#"{"model_type": "qwen2", "num_hidden_layers": 1, "layer_types": ["sliding_attention"]}"#,
            "use_sliding_window is missing; expected true: layer_types slide",
        ),
        (
            r#"{"model_type": "gemma2", "final_logit_softcapping": 1e39}"#,
            "final_logit_softcapping is 1e+39; expected 1.2e-38 to 3.4e38",
        ),
        (
            r#"{"model_type": "roberta", "pad_token_id": 18446744073709551615}"#,
            "pad_token_id is 18446744073709551615; expected below max_position_embeddings less 1",
        ),
        (
            r#"{"model_type": "bert", "type_vocab_size": 1152921504606846976}"#,
            "type_vocab_size is 1152921504606846976; expected 0 to 65536",
        ),
        (r#"{"model_type": "llama", "head_dim": 7}"#, "head_dim is 7; expected an even number"),
        (
            r#"{"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}"#,
            "expected a model ..ForCausalLM",
        ),
        (
            r#"{"model_type": "bert", "architectures": ["BertForMaskedLM"]}"#,
            "expected a model ..ForSequenceClassification",
        ),
        (
            r#"{"model_type": "bert", "num_labels": 1}"#,
            "num_labels is 1; expected 2 classes or more",
        ),
        (
            r#"{"model_type": "qwen2", "num_hidden_layers": 2, "layer_types": ["full_attention"]}"#,
            "expected one for each of the 2 layers",
        ),
        (
            r#"{"model_type": "gemma2", "num_hidden_layers": 1, "sliding_window": null}"#,
            "sliding_window is null; expected a number: layer_types slide",
        ),
        (
            r#"{"model_type": "bert", "position_embedding_type": "relative_key"}"#,
            "position_embedding_type is \"relative_key\"; expected absolute",
        ),
        ("[]", "m/config.json"),
    ];
    for (text, expected) in cases {
        let error = parse(text).unwrap_err();
        assert!(
            error.starts_with("m/config.json: ") && error.contains(expected),
            "{text}: {error}"
        );
    }
}

#[test]
fn what_was_read_is_written_back() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        parse(r#"{"model_type": "llama", "vocab_size": 5, "bos_token_id": 1, "x": [1.5]}"#);
    let config = config.unwrap();
    config.save(dir.path()).unwrap();
    assert_eq!(TransformerConfig::load(dir.path()).unwrap(), config);
    assert_eq!(config.json()["x"][0], 1.5);
}
