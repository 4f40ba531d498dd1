//! What the dashboard and the alerts ask for is what the binaries measure.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{collections::BTreeSet, env, fs, path::Path, process::Command};

use serde_json::{Value, json};
use stillhouse_runtime::telemetry::{Kind, Metric};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn catalogues() -> [(&'static str, &'static [Metric]); 2] {
    [
        ("teacher-server", teacher_server::metrics::CATALOGUE),
        ("student-worker", student_worker::metrics::CATALOGUE),
    ]
}

/// Names and label matchers in PromQL: every `stillhouse_...` and what stands in its braces.
fn asked(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("stillhouse_") {
        rest = &rest[at..];
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let braces = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let matchers = braces.map_or("", |(inner, _)| inner);
        let matchers = matchers.split(',').filter_map(|matcher| {
            let (label, value) = matcher.split_once('=')?;
            let value = value.trim_start_matches('~').trim_matches(['"', '\\']);
            Some((label.trim().to_owned(), value.to_owned()))
        });
        found.push((name.to_owned(), matchers.collect()));
        rest = after;
    }
    found
}

/// Checks an expression; the metrics that it is about.
fn check(place: &str, text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, matchers) in asked(text) {
        let all = catalogues();
        let mut known = all.iter().flat_map(|(_, catalogue)| *catalogue);
        let metric = known.find(|metric| {
            let suffix = name.strip_prefix(metric.name);
            match metric.kind {
                Kind::Histogram(_) => {
                    suffix.is_some_and(|suffix| ["_bucket", "_sum", "_count"].contains(&suffix))
                }
                _ => suffix == Some(""),
            }
        });
        let metric = metric.unwrap_or_else(|| panic!("{place}: there is no {name}"));
        // Those two are Prometheus' own.
        let own = |(label, _): &&(String, String)| label != "job" && label != "instance";
        for (label, values) in matchers.iter().filter(own) {
            for value in values.split('|') {
                let mut own = metric.series.iter().flat_map(|series| *series);
                let there = own.any(|(key, own)| key == label && *own == value);
                assert!(there, "{place}: {name} has no {label}=\"{value}\"");
            }
        }
        names.insert(metric.name.to_owned());
    }
    names
}

#[test]
fn the_dashboard_shows_every_metric_and_no_other() {
    let file = root().join("deploy/grafana/stillhouse.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut shown = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let names = check(title, expression);
            assert!(!names.is_empty(), "{title} shows nothing of ours");
            // What a legend names must be what the sum is by.
            for label in target["legendFormat"].as_str().unwrap().split("{{").skip(1) {
                let label = label.split("}}").next().unwrap();
                let kept = expression.contains(label)
                    || (label == "instance" && !expression.contains("sum"));
                assert!(kept, "{title}: {label} is not in {expression}");
            }
            shown.extend(names);
        }
    }
    // For alerts, or for a person who looks for them.
    let elsewhere = [
        "stillhouse_teacher_members",
        "stillhouse_teacher_row_errors_total",
        "stillhouse_teacher_queue_clients",
        "stillhouse_teacher_device_panics_total",
        "stillhouse_teacher_access_clients",
        "stillhouse_teacher_reloads_total",
        "stillhouse_teacher_file_unusable",
        "stillhouse_teacher_tls_certificate_expires_timestamp_seconds",
        "stillhouse_teacher_reports_total",
        "stillhouse_student_gradient_norm",
        "stillhouse_student_learning_rate",
    ];
    for metric in catalogues().iter().flat_map(|(_, catalogue)| *catalogue) {
        let there = shown.contains(metric.name) != elsewhere.contains(&metric.name);
        assert!(there, "{} is shown nowhere, or is both shown and not", metric.name);
    }
}

#[test]
fn alerts_are_about_what_is_measured() {
    let text = fs::read_to_string(root().join("deploy/prometheus/alerts.yaml")).unwrap();
    let mut alerts = BTreeSet::new();
    let mut alert = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            assert!(alerts.insert(name), "{name} is there twice");
            alert = name;
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            assert!(!check(alert, expression).is_empty(), "{alert} is about nothing");
        }
    }
    assert_eq!(alerts.len(), text.matches("expr: ").count());
    assert_eq!(alerts.len(), text.matches("summary: ").count());
    assert_eq!(alerts.len(), text.matches("severity: ").count());
    assert!(alerts.len() >= 10);

    let tests = fs::read_to_string(root().join("deploy/prometheus/alerts_test.yaml")).unwrap();
    check("alerts_test.yaml", &tests);
    for alert in alerts {
        let mut cases = tests.split("alertname: ").skip(1);
        let fires = |case: &str| {
            let own = case.strip_prefix(alert).is_some_and(|rest| rest.starts_with('\n'));
            own && case.contains("exp_labels:")
        };
        assert!(cases.any(fires), "{alert} fires in no test");
    }
}

fn promtool(folder: &Path, arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
#[ignore = "needs Prometheus' promtool"]
fn prometheus_reads_the_alerts_and_the_dashboard() {
    let alerts = root().join("deploy/prometheus");
    promtool(&alerts, &["check", "rules", "alerts.yaml"]);
    promtool(&alerts, &["test", "rules", "alerts_test.yaml"]);

    // The dashboard's expressions, as rules; JSON is YAML.
    let file = root().join("deploy/grafana/stillhouse.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let rules: Vec<Value> = targets
        .enumerate()
        .map(|(number, target)| {
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            json!({ "record": format!("expression_{number}"), "expr": expression })
        })
        .collect();
    assert!(rules.len() > 30);
    let folder = tempfile::tempdir().unwrap();
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(folder.path().join("dashboard.yaml"), rules.to_string()).unwrap();
    promtool(folder.path(), &["check", "rules", "dashboard.yaml"]);
}

/// `docs/metrics.md`, of the catalogues; `UPDATE_GOLDEN=1` writes it.
#[test]
fn the_documentation_lists_the_catalogues() {
    let mut text = "# Metrics\n\nWhat the binaries measure, at `/metrics` of `metrics_listen` \
                    (`--metrics-listen`). Every series with\nlabels that are known beforehand is there from \
                    the start, at 0. `deploy/grafana/stillhouse.json` shows\nthem, \
                    `deploy/prometheus/alerts.yaml` watches them.\n"
        .to_owned();
    for (binary, catalogue) in catalogues() {
        text += &format!("\n## {binary}\n\n| metric | kind | labels | what |\n|---|---|---|---|\n");
        for metric in catalogue {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            let mut labels: Vec<(&str, Vec<&str>)> = Vec::new();
            for (key, value) in metric.series.iter().flat_map(|series| *series) {
                match labels.iter_mut().find(|(own, _)| own == key) {
                    Some((_, values)) if values.contains(value) => {}
                    Some((_, values)) => values.push(value),
                    None => labels.push((key, vec![value])),
                }
            }
            let labels: Vec<String> = labels
                .iter()
                .map(|(key, values)| format!("`{key}`: {}", values.join(", ")))
                .collect();
            text += &format!(
                "| `{}` | {kind} | {} | {} |\n",
                metric.name,
                labels.join("; "),
                metric.help
            );
        }
    }
    let file = root().join("docs/metrics.md");
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap();
    assert_eq!(found, text, "run the test with UPDATE_GOLDEN=1");
}
