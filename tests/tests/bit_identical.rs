//! A student that was killed and resumed, and one whose teacher was killed and restarted half-way,
//! end with the same weights as the undisturbed run, byte for byte.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use stillhouse_nn::Philox;
use stillhouse_tests::{
    models,
    process::{Teacher, UNCACHED, pause, signal},
    student::{Student, finish},
};

const STEPS: u64 = 300;
const CHECKPOINT_STEPS: u64 = 25;

/// 300 steps of a small student with everything random that a run may hold: dropout, shuffling and
/// the teacher's draws.
fn recipe(url: &str) -> String {
    format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = [32], num_labels = 10, dropout = 0.2 }}\n\
         loss = {{ alpha = 0.9, temperature = 4.0 }}\n\
         [teacher]\nkind = \"endpoints\"\nendpoints = [{url:?}]\ntimeout_ms = 5000\nkept_bytes = 0\n\
         encoding = {{ kind = \"sampled\", draws = 8 }}\n\
         retry = {{ initial_ms = 10, max_ms = 100 }}\n\
         [train]\nepochs = 6\nbatch_size = 20\ncheckpoint_every_steps = {CHECKPOINT_STEPS}\n"
    )
}

fn student(folder: &Path, name: &str, teacher: &Teacher) -> Student {
    Student::new(folder, name, 1000, &recipe(&teacher.url()))
}

/// Another step every time; printed, so that a failure can be repeated.
fn random_steps(random: &mut Philox, count: usize) -> Vec<u64> {
    let mut steps: Vec<u64> =
        (0..count).map(|_| 5 + u64::from(random.below(STEPS as u32 - 60))).collect();
    steps.sort_unstable();
    println!("disturbed at steps {steps:?}");
    steps
}

/// The same, each well before the next checkpoint: a run stands still while it writes one, and a kill that
/// comes late would meet it there.
fn steps_between_checkpoints(random: &mut Philox) -> Vec<u64> {
    let step = |third: u64| {
        let checkpoint = 3 * third + u64::from(random.below(3));
        CHECKPOINT_STEPS * checkpoint + 5 + u64::from(random.below(15))
    };
    let steps: Vec<u64> = (0..3).map(step).collect();
    println!("killed at steps {steps:?}");
    steps
}

#[test]
fn kills_and_restarts_do_not_change_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("teacher");
    std::fs::create_dir(&model).unwrap();
    // Slower than the student, so that a run lasts and there is always a request to lose.
    models::write_mlp(&model, 784, &[1200, 1200], 10, 1);
    let mut teacher = Teacher::start(&model, &UNCACHED);

    let undisturbed = student(folder.path(), "undisturbed", &teacher);
    let outcome = undisturbed.train(&[]);
    assert_eq!(outcome["steps"], STEPS);
    let expected = undisturbed.weights();

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let mut random = Philox::new(now.as_nanos() as u64, 0);

    // The student dies, three times, wherever it is between two checkpoints.
    let killed = student(folder.path(), "killed", &teacher);
    let mut between_checkpoints = 0;
    for step in steps_between_checkpoints(&mut random) {
        let mut child = killed.start(&["--resume"]);
        killed.wait_for_step(&mut child, step);
        assert!(child.try_wait().unwrap().is_none(), "it was over before it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
        let reached = killed.last_step();
        assert!(reached >= step && reached < STEPS, "killed at step {reached}, wanted {step}");
        between_checkpoints += u32::from(!reached.is_multiple_of(CHECKPOINT_STEPS));
    }
    assert!(between_checkpoints > 0, "every kill met a checkpoint: nothing was done again");
    killed.train(&["--resume"]);
    assert!(killed.weights() == expected, "a killed and resumed run ended with other weights");

    // The teacher dies half-way, and comes back at the same address.
    let bereft = student(folder.path(), "bereft", &teacher);
    let mut child = bereft.start(&[]);
    for step in random_steps(&mut random, 2) {
        bereft.wait_for_step(&mut child, step);
        // Stopped, it answers nothing more: once the student stands still, what it has asked for
        // is in flight, and dies with the teacher.
        signal(teacher.pid(), "STOP");
        let mut reached = 0;
        while std::mem::replace(&mut reached, bereft.last_step()) != reached {
            pause(Duration::from_millis(200));
        }
        assert!(reached < STEPS, "it was over before its teacher died");
        let address = teacher.address();
        teacher.kill();
        teacher = Teacher::start_on(address, &model, &UNCACHED);
    }
    finish(child);
    assert!(bereft.weights() == expected, "a run that lost its teacher ended with other weights");
}
