//! `docs/settings.md`, made of the settings' own comments and defaults; `UPDATE_GOLDEN=1` writes it.

use std::{env, fs, path::Path};

use toml::{Table, Value};

use super::{ClientSettings, Settings};

const SETTINGS: &str = include_str!("../settings.rs");
const TLS: &str = include_str!("../../../crates/runtime/src/tls.rs");
const TRACES: &str = include_str!("../../../crates/runtime/src/traces/mod.rs");

/// Sections of the file, the source and the name of what each is read into.
const SECTIONS: [(&str, &str, &str); 9] = [
    ("", SETTINGS, "Settings"),
    ("limits", SETTINGS, "Limits"),
    ("batching", SETTINGS, "Batching"),
    ("clients.NAME", SETTINGS, "ClientSettings"),
    ("cache", SETTINGS, "Cache"),
    ("tls", TLS, "ServerTls"),
    ("drain", SETTINGS, "Drain"),
    ("log", SETTINGS, "Log"),
    ("traces", TRACES, "Traces"),
];

const HEAD: &str = "# Settings of a teacher server

From defaults, then the file of `--config`, then the environment, then flags: the later one counts. Each can be
set in the file under its section, or with `--set SECTION.KEY=VALUE`; those that have a flag and a variable of
their own are in `teacher-server --help`. The container image sets `STILLHOUSE_LISTEN`,
`STILLHOUSE_METRICS_LISTEN` and `STILLHOUSE_LOG_FORMAT`: in it, a file does not change these three.

A server may need as much memory as its models, `limits.held_bytes`, `cache.memory_bytes`, and what is beside
them ([security.md](security.md)): with the defaults, some 2.5 GiB beside the models. Lower the first two where a
container has less.
";

/// The fields of a structure with their comments, in order.
fn fields(source: &str, name: &str) -> Vec<(String, String)> {
    let begin = format!("pub struct {name} {{\n");
    let body = source.split_once(&begin).expect("the structure is there").1;
    let (mut fields, mut words) = (Vec::new(), Vec::new());
    for line in body.lines().map(str::trim).take_while(|line| *line != "}") {
        if let Some(comment) = line.strip_prefix("///") {
            words.push(comment.trim().to_owned());
        } else if let Some((field, _)) =
            line.strip_prefix("pub ").and_then(|line| line.split_once(':'))
        {
            fields.push((field.to_owned(), std::mem::take(&mut words).join(" ")));
        }
    }
    fields
}

fn text() -> String {
    let defaults = Table::try_from(Settings::default()).unwrap();
    let client = Table::try_from(ClientSettings::default()).unwrap();
    let none = Table::new();
    let sections: Vec<&str> = SECTIONS.iter().map(|(section, ..)| *section).collect();
    let mut text = HEAD.to_owned();
    for (section, source, name) in SECTIONS {
        let own = match section {
            "" => &defaults,
            "clients.NAME" => &client,
            _ => defaults.get(section).and_then(Value::as_table).unwrap_or(&none),
        };
        if section.is_empty() {
            text += "\n| key | meaning | default |\n|---|---|---|\n";
        } else {
            text += &format!("\n## [{section}]\n\n| key | meaning | default |\n|---|---|---|\n");
        }
        for (key, meaning) in fields(source, name) {
            // The others have a table of their own.
            if section.is_empty() && (sections.contains(&key.as_str()) || key == "clients") {
                continue;
            }
            let default = match own.get(&key) {
                None => "none".to_owned(),
                Some(Value::String(word)) if word.is_empty() => "empty".to_owned(),
                Some(value) => format!("`{value}`"),
            };
            text += &format!("| `{key}` | {} | {default} |\n", meaning.replace('|', "\\|"));
        }
    }
    text
}

#[test]
fn the_documentation_lists_every_setting_and_its_default() {
    let text = text();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text, "run the test with UPDATE_GOLDEN=1");
    // What there is a default of is in some table.
    for (section, value) in Table::try_from(Settings::default()).unwrap() {
        let keys =
            value.as_table().map_or_else(|| vec![section.clone()], |t| t.keys().cloned().collect());
        for key in keys {
            assert!(text.contains(&format!("| `{key}` |")), "{section}: {key}");
        }
    }
}
