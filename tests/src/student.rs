//! `student-worker train` as a process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::process::{binary, pause, wait_within};

/// MNIST as it lies in the repository.
pub fn mnist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/mnist").canonicalize().unwrap()
}

/// A recipe file in a folder, and the run that it leaves beside it.
pub struct Student {
    recipe: PathBuf,
    output: PathBuf,
}

impl Student {
    /// Writes a recipe: `sections` are its TOML without `name`, `[data]` and `[output]`.
    pub fn new(folder: &Path, name: &str, train_rows: usize, sections: &str) -> Self {
        let recipe = folder.join(format!("{name}.toml"));
        let output = folder.join(name);
        let text = format!(
            "name = {name:?}\nseed = 5\n{sections}\n[data]\ndir = {:?}\ntrain_rows = {train_rows}\n\
             [output]\ndir = {output:?}\n",
            mnist()
        );
        fs::write(&recipe, text).unwrap();
        Self { recipe, output }
    }

    /// Its recipe's file.
    pub fn recipe(&self) -> &Path {
        &self.recipe
    }

    /// The command that trains it, for a caller that changes it (pins it to a core, say).
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("student-worker"));
        command.arg("train").arg(&self.recipe).arg("--json").args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts training.
    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("student-worker starts")
    }

    /// Trains to the end and returns what it printed.
    pub fn train(&self, arguments: &[&str]) -> Value {
        finish(self.start(arguments))
    }

    /// Waits until a running student has recorded a step, or its process has ended.
    pub fn wait_for_step(&self, child: &mut Child, step: u64) {
        let begun = Instant::now();
        while self.last_step() < step && child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no step {step} within a minute");
            pause(Duration::from_millis(2));
        }
    }

    /// The newest step in the run's metrics.
    pub fn last_step(&self) -> u64 {
        self.steps().into_iter().max().unwrap_or(0)
    }

    /// The steps that it recorded, in their order there.
    pub fn steps(&self) -> Vec<u64> {
        self.records().iter().filter_map(|record| record["step"].as_u64()).collect()
    }

    /// What it recorded of its newest step.
    pub fn last_record(&self) -> Option<Value> {
        self.records().pop()
    }

    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.output.join("metrics.jsonl")).unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.filter(|record| record["kind"] == "step").collect()
    }

    /// Bytes of the trained weights.
    pub fn weights(&self) -> Vec<u8> {
        fs::read(self.output.join("model.safetensors")).expect("a trained student")
    }

    /// Whether the run is over.
    pub fn is_done(&self) -> bool {
        self.output.join("model.safetensors").exists()
    }
}

/// Waits for a student that should succeed; what it printed.
pub fn finish(child: Child) -> Value {
    finish_within(child, Duration::from_secs(60))
}

/// As [`finish`], for one that may take as long as this.
pub fn finish_within(mut child: Child, patience: Duration) -> Value {
    let status = wait_within(&mut child, patience);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(status.success(), "student-worker ended with {status}:\n{errors}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}
