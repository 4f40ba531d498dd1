//! Texts with a class each.

use serde_json::json;
use stillhouse_nn::TransformerConfig;

use super::*;

/// A tokenizer as BERT's: words, and tokens around a text.
fn words() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/words/tokenizer.json")
}

fn classes() -> Classes {
    let json = json!({"model_type": "bert", "id2label": {"0": "negative", "1": "positive"}});
    let serde_json::Value::Object(json) = json else { panic!() };
    Classes::of(&TransformerConfig::from_json(json).unwrap())
}

/// What is read of a file of these bytes, which is validated on, too.
fn classified(format: &str, bytes: &[u8], lines: &str) -> Result<(Corpora, TextData), String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), bytes).unwrap();
    let text = format!(
        "name = 'a'\nstudent.config = 'c'\nloss.alpha = 0.0\n[data]\nformat = '{format}'\n\
         train_files = ['file']\nvalidation_files = ['file']\nsequence_length = 5\n\
         label_field = 'label'\ntext_field = 'sentence'\n{lines}"
    );
    let table: toml::Table = text.parse().unwrap();
    assert!(crate::text::recipe::is_text(&table));
    let recipe = from_table(table, folder.path()).map_err(|error| error.to_string())?;
    let tokenizer =
        TextTokenizer::load(&recipe.data, &words()).map_err(|error| error.to_string())?;
    let cache = folder.path().join("cache");
    let read = || Corpora::read(&recipe.data, &tokenizer, Some(&classes()), &cache);
    let time = || fs::read_dir(&cache).unwrap().next().unwrap().unwrap().metadata().unwrap();
    let first =
        read().map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), ""))?;
    let written = time().modified().unwrap();
    assert_eq!(read().unwrap(), first);
    assert_eq!(time().modified().unwrap(), written, "it is read from the cache");
    Ok((first, recipe.data))
}

#[test]
fn a_text_is_one_sequence_between_the_tokenizers_own_tokens() {
    let jsonl = b"{\"sentence\": \"a good film\", \"label\": 1}\n\
                  {\"sentence\": \"BAD\", \"label\": \"negative\"}\n\
                  {\"sentence\": \"not very good\", \"label\": \"0\", \"id\": 3}\n";
    let tsv = b"label\tid\tsentence\n1\t\ta good film\nnegative\t2\tBAD\r\n\n0\t3\tnot very good\n";
    let texts = [Some("a good film"), Some("BAD"), Some("not very good")];
    let labels = [Some("positive"), Some("0"), Some("negative")];
    let named = crate::data::parquet_of_texts(&[("label", &labels), ("sentence", &texts)], None);
    let numbers =
        crate::data::parquet_of_texts(&[("sentence", &texts)], Some(("label", &[1, 0, 0])));
    let formats: [(&str, &[u8]); 4] =
        [("jsonl", jsonl), ("tsv", tsv), ("parquet", &named), ("parquet", &numbers)];
    for (format, bytes) in formats {
        let (Corpora { train, validation }, data) = classified(format, bytes, "").unwrap();
        assert_eq!(train.ids, [2, 4, 7, 6, 3, 2, 5, 3, 2, 8, 9, 7, 3], "{format}");
        assert_eq!((&train.starts[..], &train.classes[..]), (&[0, 5, 8, 13][..], &[1, 0, 0][..]));
        assert_eq!((train.counts.documents, train.counts.learnt), (3, 3));
        assert_eq!(train.counts.remarks(data.on_long()), None);
        assert_eq!(validation, train);
        // Classes are part of what a run is known by.
        let mut other = train.clone();
        other.classes[2] = 1;
        assert_ne!(other.sha256(), train.sha256());
    }
}

#[test]
fn long_texts_are_cut_within_the_tokenizers_own_tokens() {
    let tsv = b"sentence\tlabel\na very very very bad film\t0\ngood\t1\n";
    let (cut, data) = classified("tsv", tsv, "").unwrap();
    assert_eq!(cut.train.ids, [2, 4, 9, 9, 3, 2, 7, 3]);
    let words = cut.train.counts.remarks(data.on_long()).unwrap();
    assert_eq!(words, "1 longer than a sequence, cut off");
    let (passed, _) = classified("tsv", tsv, "on_long = 'skip'").unwrap();
    assert_eq!((passed.train.ids, passed.train.classes), (vec![2, 7, 3], vec![1]));
    let error = classified("tsv", tsv, "on_long = 'error'").unwrap_err();
    assert!(error.contains("line 2: 8 tokens, more than the 5 of a sequence"), "{error}");
}

#[test]
fn what_is_no_text_of_a_class_is_counted_or_named() {
    let tsv = b"sentence\tlabel\ngood\t1\ngood\t2\nbad\ngood\tgreat\n\t0\nbad\xff\t0\nbad\t0\n";
    let error = classified("tsv", tsv, "").unwrap_err();
    let expected = "/file: line 3: the label is \"2\", expected 0 to 1, or a name of the student's id2label: negative, positive; \
                    data.on_malformed = \"skip\" would pass it over";
    assert_eq!(error, expected);
    let lines = "on_malformed = 'skip'\non_invalid_utf8 = 'skip'";
    let (corpora, _) = classified("tsv", tsv, lines).unwrap();
    let Counts { documents, malformed, invalid_utf8, empty, .. } = corpora.train.counts;
    assert_eq!([documents, malformed, invalid_utf8, empty], [2, 3, 1, 1]);
    assert_eq!(corpora.train.classes, [1, 0]);
    let error = classified("tsv", b"sentence\tlabel\nbad\n", "").unwrap_err();
    assert!(error.contains("line 2: 1 columns, expected 2, those of line 1"), "{error}");
    for (header, found) in [("sentence\tclass", r#"["sentence", "class"]"#), ("", "[]")] {
        let error = classified("tsv", header.as_bytes(), "").unwrap_err();
        let missing = if header.is_empty() { "sentence" } else { "label" };
        let expected = format!("the columns are {found}, expected {missing:?} among them, as");
        assert!(error.contains(&expected), "{error}");
    }
    let error = classified("jsonl", b"{\"sentence\": \"good\"}", "").unwrap_err();
    assert!(error.contains("line 1: no \"label\" in the object"), "{error}");
    let error = classified("jsonl", b"{\"sentence\": \"good\", \"label\": []}", "").unwrap_err();
    assert!(error.contains("line 1: \"label\" is not a string or a number"), "{error}");
    let error = classified("jsonl", b"{\"sentence\": \"good\", \"label\": 1.0}", "").unwrap_err();
    assert!(error.contains("the label is \"1.0\", expected 0 to 1"), "{error}");
}

#[test]
fn what_is_held_out_is_spread_over_files_sorted_by_class() {
    let folder = tempfile::tempdir().unwrap();
    let text: String =
        (0..40).map(|at| format!("good\t{}\n", u8::from(at >= 20))).collect::<String>();
    fs::write(folder.path().join("file"), format!("sentence\tlabel\n{text}")).unwrap();
    let text = "name = 'a'\nstudent.config = 'c'\nloss.alpha = 0.0\n[data]\nformat = 'tsv'\n\
                train_files = ['file']\nvalidation_fraction = 0.25\nsequence_length = 5\n\
                label_field = 'label'\ntext_field = 'sentence'\n";
    let recipe = from_table(text.parse().unwrap(), folder.path()).unwrap();
    let tokenizer = TextTokenizer::load(&recipe.data, &words()).unwrap();
    let cache = folder.path().join("cache");
    let corpora = Corpora::read(&recipe.data, &tokenizer, Some(&classes()), &cache).unwrap();
    let count = |corpus: &Corpus| {
        let positive = corpus.classes.iter().sum::<u32>() as usize;
        (corpus.classes.len() - positive, positive)
    };
    assert_eq!((count(&corpora.train), count(&corpora.validation)), ((15, 15), (5, 5)));
}

#[test]
fn a_tokenizer_that_cannot_frame_a_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = |label: &str| {
        let text = format!(
            "name = 'a'\nstudent.config = 'c'\nloss.alpha = 0.0\n[data]\nformat = 'tsv'\n\
             train_files = ['file']\nvalidation_fraction = 0.25\nsequence_length = 5\n{label}"
        );
        from_table(text.parse().unwrap(), folder.path()).unwrap().data
    };
    let path = folder.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(words()).unwrap()).unwrap();
    json["post_processor"]["special_tokens"].as_object_mut().unwrap().remove("[CLS]");
    fs::write(&path, json.to_string()).unwrap();
    let error = TextTokenizer::load(&data("label_field = 'label'"), &path).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: not a tokenizer: its post_processor"), "{error}");
    TextTokenizer::load(&data(""), &path).unwrap();
    // The side that long texts are cut at is the tokenizer's.
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(words()).unwrap()).unwrap();
    json["truncation"] = json!({"direction": "Left", "max_length": 4, "strategy": "LongestFirst",
                                "stride": 0});
    fs::write(&path, json.to_string()).unwrap();
    let data = data("label_field = 'label'\ntext_field = 'sentence'\non_long = 'truncate'");
    let tokenizer = TextTokenizer::load(&data, &path).unwrap();
    fs::write(folder.path().join("file"), "sentence\tlabel\na very very bad film\t0\na\t1\n")
        .unwrap();
    let cache = folder.path().join("cache");
    let corpora = Corpora::read(&data, &tokenizer, Some(&classes()), &cache).unwrap();
    assert_eq!(corpora.validation.ids, [2, 9, 5, 6, 3]);
}
