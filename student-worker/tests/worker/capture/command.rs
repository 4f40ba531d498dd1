//! `student-worker capture`.

use std::fs;

use super::{captured, embedded};
use crate::support::{BINARY, Bench, refused, text, worker};

#[test]
fn the_command_captures_and_says_how_large_labels_are() {
    let bench = Bench::new();
    let file = bench.write_recipe("c", &embedded(&bench, "request_rows = 8"));
    let out = bench.path().join("out");
    let arguments = ["capture", text(&file), "--out", text(&out)];
    let output = worker(&arguments);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // 24 bytes for each 8 rows, 4 and 12 for each.
    assert!(
        words.starts_with("c: labels of 120 rows: 2280 bytes, 19.0 a label, after "),
        "{words}"
    );
    assert!(String::from_utf8(output.stderr).unwrap().contains("15 requests for 120 labels"));
    refused(&arguments, 64, "holds a capture already");

    let output = worker(&[&arguments[..], &["--resume", "--json"]].concat());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["bytes_per_row"], &value["finished"]), (&19.0.into(), &true.into()));
    assert!(output.stderr.is_empty());
    // A capture that is complete is checked.
    let labels = out.join("labels.bin");
    let mut bytes = fs::read(&labels).unwrap();
    bytes[30] ^= 1;
    fs::write(&labels, bytes).unwrap();
    refused(&[&arguments[..], &["--resume"]].concat(), 64, "labels.bin: damaged");

    let default = std::process::Command::new(BINARY)
        .args(&arguments[..2])
        .current_dir(bench.path())
        .output()
        .unwrap();
    assert!(default.status.success());
    assert!(bench.path().join("captures/c/capture.json").is_file());

    let hard = bench.write_recipe("hard", "");
    refused(&["capture", text(&hard)], 64, "teacher: no section is not accepted, expected one");
    let replayed = bench.write_recipe("replayed", &captured(&out, ""));
    refused(&["capture", text(&replayed)], 64, "teacher.kind: \"captured\" is not accepted");
}
