use super::*;

const RECIPE: &str = r#"
    name = "a"
    student.config = "student.json"
    loss.alpha = 0.0
    [data]
    format = "jsonl"
    train_files = ["train.jsonl"]
    validation_files = ["validation.jsonl"]
    tokenizer = "tokenizer.json"
    sequence_length = 64
"#;

fn read(text: &str) -> Result<TextRecipe, String> {
    from_table(text.parse().unwrap(), Path::new("/recipes")).map_err(|error| error.to_string())
}

#[test]
fn defaults_fill_in_and_paths_are_those_of_the_file() {
    assert!(is_text(&RECIPE.parse().unwrap()));
    assert!(!is_text(&"data.format = 'mnist'".parse().unwrap()));
    let recipe = read(RECIPE).unwrap();
    assert_eq!(recipe.data.train_files, [PathBuf::from("/recipes/train.jsonl")]);
    assert_eq!(recipe.student.config, Some("/recipes/student.json".into()));
    assert_eq!((recipe.data.text_field(), recipe.data.on_long()), ("text", OnLong::Split));
    assert_eq!((recipe.data.on_malformed(), recipe.data.on_empty), (OnFault::Error, OnFault::Skip));
    assert_eq!(recipe.train, TextTrain::default());
    assert_eq!(recipe.train.micro_batch_tokens(), 4096);
    let written = toml::to_string(&recipe).unwrap();
    assert_eq!(read(&written).unwrap(), recipe);
}

#[test]
fn faults_name_key_value_and_range() {
    let cases = [
        ("train_files = [\"train.jsonl\"]", "train_files = []", "data.train_files: an empty list"),
        (
            "validation_files = [\"validation.jsonl\"]",
            "",
            "data.validation_files: one of 0 given is not accepted, expected either this or",
        ),
        (
            "validation_files = [\"validation.jsonl\"]",
            "validation_fraction = 1.0",
            "data.validation_fraction: 1 is not accepted, expected above 0 and below 1",
        ),
        ("sequence_length = 64", "sequence_length = 1", "data.sequence_length: 1 is not accepted"),
        ("sequence_length = 64", "sequence_lenght = 64", "did you mean `data.sequence_length`?"),
        (
            "sequence_length = 64",
            "sequence_length = 64\nseparator = 'x'",
            "data.separator: given is not accepted, expected absent unless data.format is text",
        ),
        (
            "sequence_length = 64",
            "sequence_length = 64\nprompt_field = 'p'",
            "data.completion_field: no value is not accepted, expected given together with",
        ),
        (
            "sequence_length = 64",
            "sequence_length = 64\nshard = [2, 2]",
            "data.shard: [2, 2] is not accepted",
        ),
        (
            "student.config = \"student.json\"",
            "student = { config = \"a\", model = \"b\" }",
            "student: with 2 of them is not accepted, expected exactly one",
        ),
        (
            "student.config = \"student.json\"",
            "student = { layers_of = \"a\", keep_layers = [2, 1] }",
            "student.keep_layers: [2, 1] is not accepted, expected one layer or more, ascending",
        ),
        (
            "loss.alpha = 0.0",
            "loss.alpha = 0.5",
            "loss.alpha: 0.5 is not accepted, expected 0 where",
        ),
        (
            "loss.alpha = 0.0",
            "train.batch_tokens = 63\nloss.alpha = 0.0",
            "train.batch_tokens: 63 is not accepted, expected 64, the sequence length, to",
        ),
        (
            "loss.alpha = 0.0",
            "train.micro_batch_tokens = 5000\nloss.alpha = 0.0",
            "train.micro_batch_tokens: 5000 is not accepted, expected 64, the sequence length, to 4096",
        ),
        (
            "sequence_length = 64",
            "sequence_length = 64\ntext_field = 'a'\nmessages_field = 'm'",
            "data.text_field: given is not accepted, expected absent where data.format is text, and",
        ),
        (
            "sequence_length = 64",
            "sequence_length = 64\ncompletions_only = false",
            "data.completions_only: given is not accepted, expected absent unless there are prompts",
        ),
        (
            "loss.alpha = 0.0",
            "train.clip_norm = -1.0\nloss.alpha = 0.0",
            "train.clip_norm: -1e0 is not accepted, expected 1.2e-38 to 3.4e38, or 0: not clipped",
        ),
        (
            "loss.alpha = 0.0",
            "schedule.warmup_steps = 1000\nloss.alpha = 0.0",
            "schedule.warmup_steps: 1000 is not accepted, expected below 1000, train.steps",
        ),
        (
            "loss.alpha = 0.0",
            "loss = { alpha = 0.0, temperature = 1e39 }",
            "loss.temperature: 1e39 is not accepted, expected 1.2e-38 to 3.4e38",
        ),
        (
            "loss.alpha = 0.0",
            "train.batch_tokens = 16777216\ntrain.micro_batch_tokens = 64\nloss.alpha = 0.0",
            "train.micro_batch_tokens: 64 is not accepted, expected 512, 32768 parts of a step, to",
        ),
        (
            "loss.alpha = 0.0",
            "on_policy = { fraction = 0.5, max_new_tokens = 4, prompt_tokens = 4 }\nloss.alpha = 0.0",
            "on_policy: a table is not accepted, expected none where there is no [teacher]",
        ),
        (
            "loss.alpha = 0.0",
            "teacher = { kind = \"embedded\", model = \"m\" }\n\
             on_policy = { fraction = 0.0, max_new_tokens = 4, prompt_tokens = 4 }",
            "on_policy.fraction: 0 is not accepted, expected above 0, at most 1",
        ),
        (
            "loss.alpha = 0.0",
            "teacher = { kind = \"embedded\", model = \"m\" }\n\
             on_policy = { fraction = 1.0, max_new_tokens = 4, prompt_tokens = 64 }",
            "on_policy.prompt_tokens: 64 is not accepted, expected 1 to 63, below the sequence",
        ),
        (
            "loss.alpha = 0.0",
            "teacher = { kind = \"captured\", dir = \"x\" }",
            "teacher.kind: captured is not accepted",
        ),
        (
            "loss.alpha = 0.0",
            "teacher = { kind = \"endpoints\", endpoints = [] }",
            "teacher.endpoints: an empty list",
        ),
        (
            "loss.alpha = 0.0",
            "teacher = { kind = \"embedded\", model = \"m\", request_rows = 3 }",
            "teacher.request_rows: given is not accepted, expected absent",
        ),
        (
            "loss.alpha = 0.0",
            "teacher = { kind = \"embedded\", model = \"m\", encoding = { kind = \"top_k\" } }",
            "teacher.encoding.k: no value is not accepted, expected 1 or more",
        ),
    ];
    for (from, to, expected) in cases {
        assert!(RECIPE.contains(from), "{from}");
        let error = read(&RECIPE.replace(from, to)).unwrap_err();
        assert!(error.contains(expected), "{to}: {error}");
    }
}
