//! Real text and files as they should not be.

mod classified;

use std::{fs, path::PathBuf};

use super::*;
use crate::text::recipe::from_table;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/stories260K")
}

/// The section of a recipe with these lines, for a file of these bytes.
fn read(
    folder: &Path,
    format: &str,
    bytes: &[u8],
    lines: &str,
) -> Result<(Corpora, TextData, TextTokenizer), String> {
    fs::write(folder.join("train"), bytes).unwrap();
    fs::write(folder.join("validation"), b"{\"text\": \"Once\", \"p\": \"a\", \"c\": \"b\"}")
        .unwrap();
    let text = format!(
        "name = 'a'\nstudent.config = 'c'\nloss.alpha = 0.0\n[data]\nformat = '{format}'\n\
         train_files = ['train']\nvalidation_files = ['validation']\nsequence_length = 8\n{lines}"
    );
    let recipe = from_table(text.parse().unwrap(), folder).map_err(|error| error.to_string())?;
    let path = folder.join("tokenizer.json");
    fs::copy(models().join("tokenizer.json"), &path).unwrap();
    let tokenizer = TextTokenizer::load(&recipe.data, &path).map_err(|e| e.to_string())?;
    let corpora = Corpora::read(&recipe.data, &tokenizer, None, &folder.join("cache"));
    corpora.map(|corpora| (corpora, recipe.data, tokenizer)).map_err(|error| error.to_string())
}

/// "Once upon a time" and "The end", as `llama2.c` has them.
const ONCE: [u32; 4] = [403, 407, 261, 378];

#[test]
fn a_file_is_a_document_or_several_between_separators() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, _, tokenizer) =
        read(folder.path(), "text", b"Once upon a time", "begin = '<s>'\nend = '</s>'").unwrap();
    assert_eq!(whole.train.ids, [&[1][..], &ONCE, &[2]].concat());
    assert_eq!(whole.train.learn, [false, true, true, true, true, true]);
    assert_eq!((whole.train.starts.clone(), whole.train.counts.learnt), (vec![0, 6], 5));
    assert_eq!(tokenizer.decode(&ONCE), "Once upon a time");

    let several = b"Once upon a time\n<|end|>\nOnce upon\n<|end|>\n";
    let (parts, data, _) = read(folder.path(), "text", several, "separator = '<|end|>'").unwrap();
    assert_eq!(parts.train.starts, [0, 4, 6]);
    // What follows the last separator is an empty document.
    assert_eq!(parts.train.counts.empty, 1);
    let remarks = parts.train.counts.remarks(data.on_long()).unwrap();
    assert_eq!(remarks, "1 without a token to learn, passed over");
}

#[test]
fn the_last_part_is_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let text = "Once upon a time there was a little girl. ".repeat(10);
    fs::write(folder.path().join("train"), &text).unwrap();
    let recipe = "name = 'a'\nstudent.config = 'c'\nloss.alpha = 0.0\n[data]\nformat = 'text'\n\
                  train_files = ['train']\nvalidation_fraction = 0.25\nsequence_length = 8\n";
    let recipe = from_table(recipe.parse().unwrap(), folder.path()).unwrap();
    let tokenizer = TextTokenizer::load(&recipe.data, &models()).unwrap();
    let corpora = Corpora::read(&recipe.data, &tokenizer, None, &folder.path().join("c")).unwrap();
    let (train, held) =
        (tokenizer.decode(&corpora.train.ids), tokenizer.decode(&corpora.validation.ids));
    assert_eq!(train.trim(), text[..315].trim());
    assert_eq!(held.trim(), text[315..].trim());
}

#[test]
fn prompts_are_marked_as_the_recipe_says() {
    let folder = tempfile::tempdir().unwrap();
    let line = br#"{"p": "Once upon", "c": " a time"}"#;
    let fields = "prompt_field = 'p'\ncompletion_field = 'c'\n";
    let (completions, ..) = read(folder.path(), "jsonl", line, fields).unwrap();
    let learn = &completions.train.learn;
    assert!(!learn[0] && !learn[1] && learn[2..].iter().all(|learn| *learn) && learn.len() > 3);
    let all = format!("{fields}completions_only = false");
    let (all, ..) = read(folder.path(), "jsonl", line, &all).unwrap();
    assert!(all.train.learn.iter().all(|learn| *learn));
    assert_eq!(all.train.ids, completions.train.ids);
}

#[test]
fn of_a_conversation_the_assistants_words_are_learnt() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    let settings = serde_json::json!({ "chat_template": template, "eos_token": "</s>" });
    fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
    let turn = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
    let line = serde_json::json!({ "m": [turn("user", "Once"), turn("assistant", "upon a time")] });
    fs::write(folder.path().join("v"), line.to_string()).unwrap();
    let lines = "messages_field = 'm'\non_malformed = 'skip'\n";
    let bytes = format!("{line}\n{{\"m\": [{{\"role\": \"user\"}}]}}\n{{\"m\": 3}}\n");
    let (corpora, _, tokenizer) = read(folder.path(), "jsonl", bytes.as_bytes(), lines).unwrap();
    let train = &corpora.train;
    assert_eq!((train.counts.documents, train.counts.malformed), (1, 2));
    let learnt: Vec<u32> = train
        .ids
        .iter()
        .zip(&train.learn)
        .filter(|(_, learn)| **learn)
        .map(|(id, _)| *id)
        .collect();
    // With the end that the template writes behind it.
    assert_eq!(tokenizer.decode(&learnt).trim(), "upon a time</s>");
    let whole = tokenizer.decode(&train.ids).replace("</s> ", "</s>");
    assert_eq!(whole.trim(), "user: Once</s>\nassistant: upon a time</s>");
    let error = read(folder.path(), "jsonl", bytes.as_bytes(), "messages_field = 'm'").unwrap_err();
    assert!(error.contains("train: line 2: m[0] has no \"role\" and \"content\""), "{error}");
    // What the student writes ends where the template ends a turn.
    assert_eq!(tokenizer.stop(), Some(2));
    // Without a word of the assistant's there is no end to learn either.
    let said = |line: &serde_json::Value| {
        let bytes = line.to_string();
        read(folder.path(), "jsonl", bytes.as_bytes(), &format!("{lines}end = '</s>'"))
    };
    let (corpora, ..) = said(&line).unwrap();
    assert_eq!(corpora.train.ids.last(), Some(&2));
    let line_of_user = serde_json::json!({ "m": [turn("user", "Once")] });
    let (corpora, ..) = said(&line_of_user).unwrap();
    assert_eq!((corpora.train.counts.documents, corpora.train.counts.empty), (0, 1));
    // Another template is another key.
    let plain = folder.path().join("plain.jinja");
    fs::write(&plain, "{{ messages[1].content }}").unwrap();
    let lines = format!("{lines}completions_only = false\nchat_template = 'plain.jinja'");
    let (other, ..) = read(folder.path(), "jsonl", line.to_string().as_bytes(), &lines).unwrap();
    assert_ne!(other.train, corpora.train);
}

#[test]
fn columns_of_parquet_files_are_texts() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [Some("Once upon a time"), None, Some("Once upon")];
    let bytes = crate::data::parquet_of_texts(&[("text", &rows), ("more", &[Some("x"); 3])], None);
    let lines = "on_malformed = 'skip'\nvalidation_fraction = 0.5";
    let text = format!(
        "name = 'a'\nstudent.config = 'c'\nloss.alpha = 0.0\n[data]\nformat = 'parquet'\n\
         train_files = ['train']\nsequence_length = 8\n{lines}"
    );
    fs::write(folder.path().join("train"), &bytes).unwrap();
    let table: toml::Table = text.parse().unwrap();
    assert!(crate::text::recipe::is_text(&table));
    let recipe = from_table(table, folder.path()).unwrap();
    let tokenizer = TextTokenizer::load(&recipe.data, &models()).unwrap();
    let cache = folder.path().join("cache");
    let corpora = Corpora::read(&recipe.data, &tokenizer, None, &cache).unwrap();
    assert_eq!((corpora.train.ids, corpora.train.counts.malformed), (ONCE.to_vec(), 1));
    assert_eq!(corpora.validation.ids, ONCE[..2]);

    let read = |lines: &str, bytes: &[u8]| {
        fs::write(folder.path().join("train"), bytes).unwrap();
        let recipe = from_table(
            text.replace("on_malformed = 'skip'", lines).parse().unwrap(),
            folder.path(),
        );
        let read = Corpora::read(&recipe.unwrap().data, &tokenizer, None, &cache);
        read.map_err(|error| error.to_string())
    };
    let error = read("", &bytes).unwrap_err();
    assert!(error.contains("train: line 2: \"text\" is null"), "{error}");
    let error = read("text_field = 'words'", &bytes).unwrap_err();
    assert!(error.contains("columns") && error.contains("`words` of strings"), "{error}");
    assert!(
        read("prompt_field = 'text'\ncompletion_field = 'more'\non_malformed = 'skip'", &bytes)
            .is_ok()
    );
    assert!(read("", b"no Parquet").unwrap_err().contains("metadata"));
    for length in (0..bytes.len()).step_by(7) {
        assert!(read("", &bytes[..length]).is_err());
    }
}

/// What may be wrong with a line, and its number.
const FAULTS: [(&[u8], &str, &str); 6] = [
    (b"{\"text\": ", "on_malformed", "not JSON: EOF while parsing a value, column 9"),
    (b"[1, 2]", "on_malformed", "not a JSON object"),
    (b"{\"txt\": \"a\"}", "on_malformed", "no \"text\" in the object"),
    (b"{\"text\": 3}", "on_malformed", "\"text\" is not a string"),
    (b"{\"text\": \"\xff\"}", "on_invalid_utf8", "not UTF-8: invalid utf-8 sequence"),
    (b"{\"text\": \"\"}", "on_empty", "no token to learn"),
];

#[test]
fn every_fault_is_an_error_with_its_line_or_counted() {
    let folder = tempfile::tempdir().unwrap();
    let good = b"{\"text\": \"Once upon a time\"}";
    for (fault, key, words) in FAULTS {
        let bytes = [good, &b"\n\n"[..], fault, b"\r\n", good, b"\n"].concat();
        let error = read(folder.path(), "jsonl", &bytes, &format!("{key} = 'error'")).unwrap_err();
        let place = format!("train: line 3: {words}");
        assert!(error.contains(&place) && error.contains(&format!("data.{key}")), "{error}");
        let (corpora, ..) =
            read(folder.path(), "jsonl", &bytes, &format!("{key} = 'skip'")).unwrap();
        let counts = corpora.train.counts;
        let expected = match key {
            "on_malformed" => Counts { malformed: 1, ..counts },
            "on_invalid_utf8" => Counts { invalid_utf8: 1, ..counts },
            _ => Counts { empty: 1, ..counts },
        };
        assert_eq!((counts, counts.documents), (expected, 2), "{key}");
    }
    // An unfinished first document, and what is not text.
    let error = read(folder.path(), "text", b"Once \xf0\x9f upon", "").unwrap_err();
    assert!(error.contains("train: line 1: not UTF-8"), "{error}");
}

#[test]
fn long_documents_are_split_cut_passed_over_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = [&b"{\"text\": \""[..], &b"Once upon a time ".repeat(5), b"\"}"].concat();
    let bytes = [&long, &b"\n{\"text\": \"Once upon\"}"[..]].concat();
    let counts = |lines: &str| {
        let (corpora, data, _) = read(folder.path(), "jsonl", &bytes, lines).unwrap();
        let lengths: Vec<usize> =
            corpora.train.documents().map(|document| document.len()).collect();
        assert_eq!(corpora.train.counts.long, 1);
        (lengths, corpora.train.counts.remarks(data.on_long()).unwrap())
    };
    let (lengths, words) = counts("on_long = 'split'");
    assert!(lengths[0] > 16 && words == "1 longer than a sequence, cut into several", "{words}");
    let (lengths, words) = counts("on_long = 'truncate'");
    assert_eq!((lengths[0], words.as_str()), (9, "1 longer than a sequence, cut off"));
    let (lengths, words) = counts("on_long = 'skip'");
    assert_eq!((lengths, words.as_str()), (vec![2], "1 longer than a sequence, passed over"));
    let error = read(folder.path(), "jsonl", &bytes, "on_long = 'error'").unwrap_err();
    assert!(error.contains("train: line 1: 2") && error.contains("more than the 8 of a sequence"));
}

/// 100,000 tokens with every kind of fault among them, as the recipe says: counted, and the same from
/// the cache.
#[test]
fn a_large_file_with_faults_throughout() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = vec![];
    let mut expected = Counts::default();
    for i in 0..20_000 {
        match i % 1000 {
            3 => bytes.extend_from_slice(b"{\"text\": \"Once"),
            5 => bytes.extend_from_slice(b"{\"text\": \"\xc3\x28\"}"),
            7 => bytes.extend_from_slice(b"{\"text\": \"\"}"),
            11 => {
                let long = "Once upon a time there was a girl ".repeat(3);
                bytes.extend_from_slice(format!("{{\"text\": \"{long}\"}}").as_bytes());
            }
            _ => {
                let text = format!("Once upon a time {}", i % 10);
                bytes.extend_from_slice(format!("{{\"text\": {text:?}}}").as_bytes());
            }
        }
        match i % 1000 {
            3 => expected.malformed += 1,
            5 => expected.invalid_utf8 += 1,
            7 => expected.empty += 1,
            11 => {
                expected.long += 1;
                expected.documents += 1;
            }
            _ => expected.documents += 1,
        }
        bytes.push(b'\n');
    }
    let lines = "on_malformed = 'skip'\non_invalid_utf8 = 'skip'\non_empty = 'skip'\n";
    let (first, ..) = read(folder.path(), "jsonl", &bytes, lines).unwrap();
    let counts = first.train.counts;
    assert!(counts.tokens > 100_000, "{counts:?}");
    let Counts { tokens, learnt, .. } = counts;
    assert_eq!(counts, Counts { tokens, learnt, ..expected });
    // All but the first of each document.
    assert_eq!(learnt, tokens - expected.documents);
    assert_eq!(first.train.ids.len() as u64, tokens);

    let cache = folder.path().join("cache");
    let files = || fs::read_dir(&cache).unwrap().map(|file| file.unwrap().path());
    let [file] = &files().collect::<Vec<_>>()[..] else { panic!() };
    // Read back, not made again: the file alone is changed, and found out.
    let (second, ..) = read(folder.path(), "jsonl", &bytes, lines).unwrap();
    assert_eq!(second, first);
    let mut damaged = fs::read(file).unwrap();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    fs::write(file, &damaged).unwrap();
    let (third, ..) = read(folder.path(), "jsonl", &bytes, lines).unwrap();
    assert_eq!(third, first);
    assert_ne!(fs::read(file).unwrap(), damaged, "it was made anew");
    // Another setting is another key.
    read(folder.path(), "jsonl", &bytes, &format!("{lines}end = '</s>'")).unwrap();
    assert_eq!(files().count(), 2);
}

#[test]
fn a_special_token_must_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let error = read(folder.path(), "text", b"a", "begin = '<begin>'").unwrap_err();
    assert!(error.starts_with("data.begin is \"<begin>\"; expected a token of"), "{error}");
}
