//! `student-worker load`: an open loop, in which a teacher that stops shows in every request that was due.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use stillhouse_tests::{
    models,
    process::{Teacher, binary, pause, signal},
};

fn command(teacher: &Teacher, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("student-worker"));
    command.args(["load", &teacher.url(), "--json"]).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn figures(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn teacher(arguments: &[&str]) -> (tempfile::TempDir, Teacher) {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 16, &[32], 10, 1);
    let teacher = Teacher::start(folder.path(), arguments);
    (folder, teacher)
}

#[test]
fn a_teacher_that_stops_for_a_second_is_seen_by_all_that_was_due() {
    let (_folder, teacher) = teacher(&[]);
    let arguments = ["--rate", "200", "--seconds", "4", "--warmup", "0.5", "--rows", "4"];
    let loading = command(&teacher, &arguments).spawn().unwrap();
    pause(Duration::from_millis(2000));
    signal(teacher.pid(), "STOP");
    pause(Duration::from_millis(1000));
    signal(teacher.pid(), "CONT");
    let output = loading.wait_with_output().unwrap();
    let figures = figures(&output);
    assert!(output.status.success(), "{figures}");
    let number = |pointer: &str| figures.pointer(pointer).and_then(Value::as_f64).unwrap();
    // About 800 requests, 200 of them due while it stood: a tenth of all waited for half a second or more.
    assert!((650.0..=950.0).contains(&number("/requests")), "{figures}");
    assert_eq!(number("/labelled"), number("/requests"));
    assert!(number("/latency_ms/p90") > 400.0, "{figures}");
    assert!(number("/latency_ms/p99") > 800.0, "{figures}");
    assert!(number("/fairness") > 0.95 && number("/bytes_per_row") > 40.0, "{figures}");
    assert_eq!(number("/cached_fraction"), 0.0, "every row is another");
}

#[test]
fn rows_that_come_again_are_cached_and_refusals_are_counted() {
    let (_folder, teacher) = teacher(&["--set", "clients.load-0.rows_per_second=100"]);
    let pid = teacher.pid().to_string();
    let arguments = [
        "--rate",
        "200",
        "--seconds",
        "1.5",
        "--warmup",
        "0.5",
        "--rows",
        "4",
        "--distinct",
        "5",
        "--clients",
        "2",
        "--encoding",
        "top_k",
        "--k",
        "3",
        "--teacher-pid",
        &pid,
    ];
    let output = command(&teacher, &arguments).output().unwrap();
    let figures = figures(&output);
    // Not all that was due was labelled.
    assert_eq!(output.status.code(), Some(75), "{figures}");
    let number = |pointer: &str| figures.pointer(pointer).and_then(Value::as_f64).unwrap();
    assert!(number("/refused") > 30.0 && number("/failed") == 0.0, "{figures}");
    assert!(number("/cached_fraction") > 0.99, "{figures}");
    assert!(number("/fairness") < 0.9, "one of two has a quota: {figures}");
    assert!(number("/teacher_cpu_us_per_row") > 0.0, "{figures}");
}

#[test]
fn what_a_teacher_refuses_is_said_at_once() {
    let (_folder, teacher) = teacher(&[]);
    for (arguments, expected, code) in [
        (&["--encoding", "top_k", "--k", "11"][..], "encoding.top_k.k: is 11", 1),
        (&["--rate", "0"], "must be 0.01 to 1000000", 64),
        (&["--rows", "2000"], "rows", 1),
        (&["--token-file", "/nonexistent/token"], "teacher.token_file: /nonexistent/token", 64),
    ] {
        let output = command(&teacher, arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(expected), "{arguments:?}: {text}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    }
}
