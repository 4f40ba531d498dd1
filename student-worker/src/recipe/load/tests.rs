use std::fs;

use super::*;
use crate::recipe::{TeacherSection, teacher::EnsembleRule};

const RECIPE: &str = r#"
    name = "small"
    [data]
    dir = "mnist"
    [student]
    model_type = "mlp"
    input_size = 784
    hidden_sizes = [32]
    num_labels = 10
    [teacher]
    kind = "endpoints"
    endpoints = ["http://127.0.0.1:7070"]
"#;

fn load_text(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recipe.toml");
    fs::write(&file, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    load(&file, &overrides).map_err(|error| error.to_string())
}

fn refused(overrides: &[&str]) -> String {
    load_text(RECIPE, overrides).unwrap_err()
}

#[test]
fn paths_are_written_as_a_person_would() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::create_dir(root.join("examples")).unwrap();
    let to = |path: &str| short(&root.join(path));
    assert_eq!(to("examples/../runs/a"), root.join("runs/a"));
    assert_eq!(to("examples").as_os_str(), root.join("examples").as_os_str(), "no / at the end");
    assert_eq!(to("none/../x"), root.join("none/../x"), "what is not there is left alone");
}

#[test]
fn defaults_fill_in_and_overrides_win() {
    let recipe = load_text(RECIPE, &["train.epochs=3", "student.hidden_sizes=[8, 8]"]).unwrap();
    assert_eq!((recipe.train.epochs, recipe.train.batch_size), (3, 128));
    assert_eq!(recipe.student.hidden_size(), 8);
    let teacher: TeacherSection = recipe.teacher.unwrap();
    assert_eq!((teacher.prefetch, teacher.retry.max_elapsed_seconds), (4, 120.0));
}

#[test]
fn paths_are_relative_to_the_file() {
    let recipe = load_text(RECIPE, &["output.dir=/tmp/run"]).unwrap();
    let dir = recipe.data.dir.unwrap();
    assert!(dir.is_absolute() && dir.ends_with("mnist"), "{}", dir.display());
    assert_eq!(recipe.output.dir, Some("/tmp/run".into()));
    let files = ["data.format=cifar10", "data.train_files=[\"a.bin\", \"/b.bin\"]"];
    let files = load_text(RECIPE, &files).unwrap().data.train_files;
    assert!(files[0].is_absolute() && files[0].ends_with("a.bin"), "{}", files[0].display());
    assert_eq!(files[1], Path::new("/b.bin"));
}

#[test]
fn an_embedded_teacher_is_one_model_or_a_list_of_them() {
    let (head, _) = RECIPE.split_once("[teacher]").unwrap();
    let load = |teacher: &str| load_text(&format!("{head}[teacher]\n{teacher}"), &[]);
    let teacher = load("kind = \"embedded\"\nmodels = [\"b\", \"/a\"]\nensemble = \"geometric\"");
    let teacher = teacher.unwrap().teacher.unwrap();
    assert_eq!(teacher.ensemble, Some(EnsembleRule::Geometric));
    let [b, a] = teacher.folders().try_into().unwrap();
    assert!(b.is_absolute() && b.ends_with("b") && a == Path::new("/a"));
    let one = load("kind = \"embedded\"\nmodel = \"/a\"").unwrap().teacher.unwrap();
    assert_eq!((one.folders(), one.ensemble), (vec!["/a".into()], None));

    let many = format!("kind = \"embedded\"\nmodels = {:?}", vec!["m"; 65]);
    for (teacher, expected) in [
        ("kind = \"embedded\"\nmodels = []", "teacher.model: no value is not accepted"),
        ("kind = \"embedded\"\nmodels = [\"a\", \"\"]", "teacher.models is empty; expected"),
        ("kind = \"embedded\"\nmodel = \"a\"\nmodels = [\"b\"]", "none beside teacher.model"),
        (&many, "teacher.models: 65 is not accepted, expected 1 to 64 model directories"),
        (
            "kind = \"endpoints\"\nendpoints = [\"http://t:1\"]\nmodels = [\"a\"]",
            "teacher.models: 1 is not accepted, expected none with kind = \"endpoints\"",
        ),
        ("kind = \"embedded\"\nmodel = \"a\"\nensemble = \"mean\"", "teacher.ensemble: unknown"),
    ] {
        let error = load(teacher).unwrap_err();
        assert!(error.contains(expected), "{teacher}: {error}");
    }
}

#[test]
fn a_recipe_survives_being_written() {
    let changes = [
        "train.clip_norm=1",
        "teacher.request_rows=64",
        "data.augment={ shift = 2, flip = true }",
        "data.leave_out=[3]",
        "data.fraction=0.1",
    ];
    let recipe = load_text(RECIPE, &changes).unwrap();
    let text = toml::to_string_pretty(&recipe).unwrap();
    assert_eq!(load_text(&text, &[]).unwrap(), recipe);
}

#[test]
fn alpha_stands_beside_one_weight_but_not_beside_both() {
    let weights = ["loss.hard_weight=2", "loss.soft_weight=0.5"];
    let error = refused(&[&weights[..], &["loss.alpha=0.7"]].concat());
    let expected = "loss.alpha: 0.7 is not accepted, expected none beside loss.hard_weight and";
    assert!(error.starts_with(expected), "{error}");
    let one = load_text(RECIPE, &["loss.alpha=0.7", weights[0]]).unwrap();
    assert_eq!(one.loss.weights(), (2.0, 0.7));
    let both = load_text(RECIPE, &weights).unwrap();
    assert_eq!(both.loss.weights(), (2.0, 0.5));
    for recipe in [one, both] {
        let text = toml::to_string_pretty(&recipe).unwrap();
        assert_eq!(load_text(&text, &[]).unwrap(), recipe, "{text}");
    }
}

#[test]
fn an_epoch_without_any_weight_is_named() {
    let alpha = "loss_schedule.alpha={kind=\"linear\", to=0, begin_epoch=2, end_epoch=6}";
    for (set, expected) in [
        (["loss.hard_weight=0", alpha], "loss.hard_weight: 0 is not accepted, expected above 0"),
        (["loss.hard_weight=0", alpha], "where the other weight is 0, as in epoch 6"),
        (["loss.hard_weight=0", "loss_schedule.start_epoch=2"], "as in epoch 1"),
        (
            [
                "loss.hard_weight=0",
                "loss_schedule.alpha={kind=\"steps\", steps=[{epoch=3, value=0}]}",
            ],
            "as in epoch 3",
        ),
        (["loss.soft_weight=0", alpha], "loss.soft_weight: 0 is not accepted, expected above"),
        (
            ["loss.alpha=0", "loss_schedule.alpha={kind=\"steps\", steps=[{epoch=11, value=1}]}"],
            "loss.alpha: 0 is not accepted, expected above 0 where there is a [teacher]",
        ),
    ] {
        let error = refused(&set);
        assert!(error.contains(expected), "{set:?}: {error}");
    }
    // Where no labels are read, every epoch must do without.
    let unlabelled = ["data.unlabelled=true", "loss.alpha=1"];
    for (change, epoch) in [("loss_schedule.start_epoch=3", 1), (alpha, 6)] {
        let error = refused(&[&unlabelled[..], &[change]].concat());
        let expected = format!("a term for hard labels, as in epoch {epoch}:");
        assert!(error.contains(&expected), "{change}: {error}");
    }
    // The schedule ends after the run, and never comes to 0 in it.
    let later = "loss_schedule.alpha={kind=\"linear\", to=0, begin_epoch=2, end_epoch=11}";
    assert!(load_text(RECIPE, &["loss.hard_weight=0", later]).is_ok());
}

#[test]
fn a_typo_is_answered_with_the_nearest_key() {
    for (typo, expected) in [
        ("train.epoch=3", "unknown key `train.epoch`; did you mean `train.epochs`?"),
        ("trian.epochs=3", "unknown key `trian`; did you mean `train`?"),
        ("student.hiden_sizes=[1]", "did you mean `student.hidden_sizes`?"),
        ("loss.temprature=4", "did you mean `loss.temperature`?"),
        (
            "loss.divergence={kind=\"skew_kl\", lamda=0.1}",
            "`loss.divergence.lamda`; did you mean `loss.divergence.lambda`?",
        ),
        ("schedule.e=1", "unknown key `schedule.e`"),
        ("loss.loss=1", "unknown key `loss.loss`"),
        ("schedule.learning_rat=1", "did you mean `schedule.learning_rate`?"),
        ("optimizer={kind=\"sgd\", momentun=0.9}", "did you mean `optimizer.momentum`?"),
        ("data.augment.flipp=true", "did you mean `data.augment.flip`?"),
        ("teacher.retry.max_m=1", "did you mean `teacher.retry.max_ms`?"),
        ("teacher.encoding.kid=\"dense\"", "did you mean `teacher.encoding.kind`?"),
    ] {
        let error = refused(&[typo]);
        assert!(error.contains(expected), "{typo}: {error}");
    }
    let required = RECIPE.replace("input_size", "inptu_size");
    let error = load_text(&required, &[]).unwrap_err();
    assert!(error.contains("did you mean `student.input_size`?"), "{error}");
}

#[test]
fn a_wrong_type_names_the_whole_key_in_every_section() {
    for (change, key) in [
        ("name=1", "name"),
        ("seed=\"one\"", "seed"),
        ("data=1", "data"),
        ("data.dir=1", "data.dir"),
        ("data.format=csv", "data.format"),
        ("data.train_rows=some", "data.train_rows"),
        ("data.train_files=one", "data.train_files"),
        ("data.keep=[-1]", "data.keep[0]"),
        ("data.fraction=half", "data.fraction"),
        ("data.augment.shift=-1", "data.augment.shift"),
        ("data.augment.flip=1", "data.augment.flip"),
        ("student=1", "student"),
        ("student.model_type=cnn", "student.model_type"),
        ("student.input_size=wide", "student.input_size"),
        ("student.hidden_sizes=[1, \"a\"]", "student.hidden_sizes"),
        ("student.num_labels=-1", "student.num_labels"),
        ("student.dropout=much", "student.dropout"),
        ("teacher.kind=far", "teacher.kind"),
        ("teacher.endpoints=3", "teacher.endpoints"),
        ("teacher.prefetch=-1", "teacher.prefetch"),
        ("teacher.encoding.k=few", "teacher.encoding.k"),
        ("teacher.encoding.dtype=f8", "teacher.encoding.dtype"),
        ("teacher.retry.max_ms=soon", "teacher.retry.max_ms"),
        ("loss=1", "loss"),
        ("loss.alpha=high", "loss.alpha"),
        ("loss.top_k_form=tail", "loss.top_k_form"),
        ("loss.divergence=forward_kl", "loss.divergence"),
        ("loss.divergence.kind=kl", "loss.divergence.kind"),
        ("loss.divergence={kind=\"skew_kl\", lambda=\"x\"}", "loss.divergence.lambda"),
        ("loss.divergence={kind=\"skew_kl\"}", "loss.divergence"),
        ("optimizer.kind=adam", "optimizer.kind"),
        ("optimizer={kind=\"sgd\", momentum=\"x\"}", "optimizer.momentum"),
        ("optimizer={kind=\"sgd\", nesterov=1}", "optimizer.nesterov"),
        ("optimizer={kind=\"adamw\", beta1=\"x\", beta2=\"x\"}", "optimizer.beta"),
        ("schedule.kind=step", "schedule.kind"),
        ("schedule.learning_rate=fast", "schedule.learning_rate"),
        ("schedule.warmup_steps=-1", "schedule.warmup_steps"),
        ("train.epochs=ten", "train.epochs"),
        ("train.clip_norm=tight", "train.clip_norm"),
        ("output.dir=1", "output.dir"),
    ] {
        let error = refused(&[change]);
        let colon = if key == "optimizer.beta" { "" } else { ": " };
        assert!(error.starts_with(&format!("{key}{colon}")), "{change}: {error}");
    }
}

#[test]
fn credentials_keep_their_links_and_tokens_do_not_leave_in_plain() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    fs::create_dir(root.join("v1")).unwrap();
    fs::write(root.join("v1/token"), "t").unwrap();
    std::os::unix::fs::symlink("v1", root.join("data")).unwrap();
    fs::write(root.join("recipe.toml"), RECIPE).unwrap();
    let with = |changes: &[&str]| {
        let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
        load(&root.join("recipe.toml"), &changes).map(|recipe| recipe.teacher.unwrap())
    };
    let token = "teacher.token_file=data/token";
    let teacher = with(&[token]).unwrap();
    assert_eq!(teacher.token_file, Some(root.join("data/token")));
    for plain in ["http://teacher:7070", "http://10.0.0.1:7070"] {
        let endpoints = format!("teacher.endpoints=[{plain:?}]");
        let error = with(&[token, &endpoints]).unwrap_err().to_string();
        assert!(error.contains(plain) && error.contains("anybody on the way"), "{error}");
        with(&[token, &endpoints, "teacher.tls.allow_plaintext_token=true"]).unwrap();
    }
    for kept in ["https://teacher:7070", "http://[::1]:7070", "http://localhost:7070"] {
        with(&[token, &format!("teacher.endpoints=[{kept:?}]")]).unwrap();
    }
    let error = with(&["teacher={kind=\"embedded\", model=\"m\", token_file=\"t\"}"]).unwrap_err();
    assert!(error.to_string().contains("teacher.token_file: a path"), "{error}");
}

#[test]
fn a_value_outside_its_range_names_key_value_and_range() {
    for (change, expected) in [
        ("seed=-1", "seed: "),
        ("name=\"a/b\"", "name: \"a/b\" is not accepted, expected letters"),
        ("train.epochs=0", "train.epochs: 0 is not accepted, expected 1 to 1000000"),
        ("train.batch_size=0", "train.batch_size: 0 is not accepted, expected 1 to 1048576"),
        ("train.eval_every=0", "train.eval_every: 0"),
        ("train.keep_checkpoints=0", "train.keep_checkpoints: 0"),
        ("train.clip_norm=-1", "train.clip_norm: -1"),
        ("data.train_rows=0", "data.train_rows: 0"),
        ("data.fraction=0", "data.fraction: 0 is not accepted, expected above 0, at most 1"),
        ("data.fraction=nan", "data.fraction: NaN"),
        ("data.keep=[]", "data.keep: an empty list is not accepted"),
        ("data.keep=[1, 10]", "data.keep: 10 is not accepted, expected 0 to 9, the student's"),
        ("data.leave_out=[10]", "data.leave_out: 10"),
        ("data.unlabelled=true", "data.unlabelled: true is not accepted, expected false where"),
        ("data.image_column=img", "data.image_column: \"img\" is not accepted, expected none"),
        ("data.test_files=[\"a\"]", "data.test_files: 1 files is not accepted, expected none"),
        ("output.dir=", "output.dir is empty; expected a path"),
        ("student.input_size=0", "student.input_size is 0"),
        ("student.num_labels=70000", "student.num_labels: 70000"),
        ("loss.alpha=1.5", "loss.alpha is 1.5; expected 0 to 1"),
        ("loss.alpha=0", "loss.alpha: 0 is not accepted, expected above 0"),
        ("loss.temperature=nan", "loss.temperature is NaN"),
        ("loss.divergence={kind=\"skew_kl\", lambda=2}", "loss.divergence.lambda is 2"),
        ("loss.divergence={kind=\"jensen_shannon\", beta=0}", "loss.divergence.beta is 0"),
        ("loss.temperature=1e-46", "loss.temperature: 1e-46 is not accepted, expected 1.2e-38 to"),
        ("loss.temperature=1e39", "loss.temperature: 1e39 is not accepted"),
        ("student.rescale_factor=1e-46", "student.rescale_factor: 1e-46"),
        ("student.image_mean=1e39", "student.image_mean is inf"),
        ("student.dropout=0.999999999999", "student.dropout is 1"),
        ("schedule.learning_rate=1e-46", "schedule.learning_rate is 1e-46"),
        ("optimizer={kind=\"adamw\", eps=1e-46}", "optimizer.eps is 1e-46"),
        ("optimizer={kind=\"sgd\", momentum=0.9999999999}", "optimizer.momentum is 0.9999999999"),
        ("optimizer={kind=\"adamw\", beta2=0.9999999999}", "optimizer.beta2 is 0.9999999999"),
        ("optimizer={kind=\"sgd\", weight_decay=1e39}", "optimizer.weight_decay is 1e39"),
        ("optimizer={kind=\"sgd\", momentum=1.0}", "optimizer.momentum is 1"),
        ("schedule.learning_rate=0", "schedule.learning_rate is 0"),
        ("teacher.kind=embedded", "teacher.model: no value is not accepted"),
        ("teacher.model=m", "teacher.model: a path is not accepted"),
        ("teacher.endpoints=[]", "teacher.endpoints: an empty list"),
        ("teacher.endpoints=[\"ftp://x\"]", "teacher.endpoints: \"ftp://x\""),
        ("teacher.tls={ca=\"c\"}", "expected https://HOST:PORT for all of them where there is"),
        ("teacher.tls={cert=\"c\"}", "teacher.tls.cert: one of cert and key is not accepted"),
        ("teacher.tls={server_name=\"\"}", "teacher.tls.server_name: an empty name"),
        ("teacher.tls={ca_file=\"c\"}", "teacher.tls.ca_file"),
        ("teacher.prefetch=1025", "teacher.prefetch: 1025"),
        ("teacher.timeout_ms=0", "teacher.timeout_ms: 0"),
        ("teacher.request_rows=0", "teacher.request_rows: 0"),
        ("teacher.retry.max_ms=1", "teacher.retry.max_ms: 1"),
        ("teacher.retry.max_elapsed_seconds=inf", "teacher.retry.max_elapsed_seconds: inf"),
        ("teacher.encoding.k=3", "teacher.encoding.k: 3 is not accepted, expected none"),
        (
            "teacher.encoding={kind=\"hidden\", values=\"logits\"}",
            "teacher.encoding.values: \"logits\" is not accepted, expected none unless kind =",
        ),
        ("teacher.kind=captured", "teacher.dir: no value is not accepted, expected the folder"),
        ("teacher.dir=x", "teacher.dir: a path is not accepted, expected none unless kind ="),
        ("teacher.encoding.kind=top_k", "teacher.encoding.k: no value"),
        ("teacher.encoding={kind=\"top_k\", k=11}", "teacher.encoding.k: 11"),
        ("teacher.encoding={kind=\"sampled\", draws=70000}", "teacher.encoding.draws: 70000"),
    ] {
        let error = refused(&[change]);
        assert!(error.contains(expected), "{change}: {error}");
    }
    let error = refused(&[
        "teacher.encoding={kind=\"top_k\", k=3}",
        "loss.divergence={kind=\"logit_mse\"}",
    ]);
    assert!(error.contains("loss.divergence: logit_mse is not accepted"), "{error}");
    let error = refused(&[
        "teacher.encoding.values=log_probabilities",
        "loss.divergence={kind=\"logit_mse\"}",
    ]);
    let expected = "teacher.encoding.values: \"log_probabilities\" is not accepted, expected \
                    \"logits\"";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn without_a_teacher_soft_labels_must_have_no_weight() {
    let (hard, _) = RECIPE.split_once("[teacher]").unwrap();
    let error = load_text(hard, &[]).unwrap_err();
    assert!(error.contains("loss.alpha: 0.9 is not accepted, expected 0"), "{error}");
    assert!(load_text(hard, &["loss.alpha=0"]).unwrap().teacher.is_none());
}
#[test]
fn keys_of_the_data_that_exclude_each_other_are_told() {
    for (changes, expected) in [
        (
            &["data.fraction=0.5", "data.train_rows=5"][..],
            "data.train_rows: 5 is not accepted, expected none beside data.fraction",
        ),
        (
            &["data.augment={ shift = 1, crop_padding = 2 }"],
            "data.augment.crop_padding: 2 is not accepted, expected none beside shift",
        ),
        (
            &["data.format=cifar10", "data.train_images=a"],
            "data.train_images: a path is not accepted, expected none with format = \"cifar10\"",
        ),
        (
            &["data.format=folder", "data.train_files=[\"a\"]"],
            "data.train_files: 1 files is not accepted, expected none with format = \"folder\"",
        ),
    ] {
        let error = refused(changes);
        assert!(error.starts_with(expected), "{changes:?}: {error}");
    }
    // Without labels nothing tells classes apart.
    for key in ["leave_out=[1]", "keep=[1]", "train_rows=5"] {
        let error = refused(&["loss.alpha=1", "data.unlabelled=true", &format!("data.{key}")]);
        assert!(error.contains("expected none where data.unlabelled = true"), "{error}");
    }
    let fine = ["loss.alpha=1", "data.unlabelled=true", "data.fraction=0.5"];
    assert!(load_text(RECIPE, &fine).unwrap().data.unlabelled);
    // All files by name, or a folder.
    let nowhere = RECIPE.replace("dir = \"mnist\"", "format = \"parquet\"");
    let error = load_text(&nowhere, &["data.train_files=[\"a\"]"]).unwrap_err();
    assert!(error.starts_with("data.test_files: an empty list is not accepted"), "{error}");
    let named = ["data.train_files=[\"a\"]", "data.test_files=[\"b\"]"];
    assert!(load_text(&nowhere, &named).is_ok());
}
