//! A capture that was killed, again and again, ends with the same files as one that was not, and
//! trains the student of its teacher when the teacher is gone.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use stillhouse_tests::{
    models,
    process::{Teacher, UNCACHED, binary, pause},
    student::{Student, finish},
};

const FILES: [&str; 2] = ["capture.json", "labels.bin"];

fn sections(teacher: &str) -> String {
    format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = [32], num_labels = 10 }}\n\
         [teacher]\n{teacher}\nrequest_rows = 4\nencoding = {{ kind = \"sampled\", draws = 8 }}\n\
         [train]\nepochs = 3\nbatch_size = 20\n"
    )
}

fn capture(folder: &Path, name: &str, out: &Path) -> Child {
    let mut command = Command::new(binary("student-worker"));
    command.arg("capture").arg(folder.join(format!("{name}.toml"))).arg("--out").arg(out);
    command.args(["--resume", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn length(out: &Path) -> u64 {
    fs::metadata(out.join("labels.bin")).map_or(0, |file| file.len())
}

#[test]
fn a_killed_capture_ends_with_the_same_bytes_and_needs_no_teacher_after_that() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = folder.join("teacher");
    fs::create_dir(&model).unwrap();
    // Slow enough that there is always a request to lose, however often it was asked before.
    models::write_mlp(&model, 784, &[1200, 1200], 10, 1);
    let mut teacher = Teacher::start(&model, &UNCACHED);
    let url = teacher.url();
    let live = sections(&format!("kind = \"endpoints\"\nendpoints = [{url:?}]"));
    let asking = Student::new(folder, "asking", 400, &live);
    let expected = {
        asking.train(&[]);
        asking.weights()
    };

    let (whole, killed) = (folder.join("whole"), folder.join("killed"));
    let outcome = finish(capture(folder, "asking", &whole));
    assert_eq!(outcome["requests"], 300);
    let total = length(&whole);
    for part in 1..=3 {
        let mut child = capture(folder, "asking", &killed);
        let begun = Instant::now();
        // In its first half: it goes on for a moment before it is killed.
        while length(&killed) < part * total / 8 && child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no labels within a minute");
            pause(Duration::from_millis(1));
        }
        assert!(child.try_wait().unwrap().is_none(), "it was over before it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(length(&killed) < total);
    }
    finish(capture(folder, "asking", &killed));
    for file in FILES {
        let read = |out: &Path| fs::read(out.join(file)).unwrap();
        assert!(read(&killed) == read(&whole), "{file} is another one");
    }

    teacher.kill();
    let captured = sections(&format!("kind = \"captured\"\ndir = {killed:?}"));
    let replaying = Student::new(folder, "replaying", 400, &captured);
    let outcome = replaying.train(&[]);
    assert_eq!(outcome["finished"], true);
    assert!(replaying.weights() == expected, "captured labels made another student");
}
