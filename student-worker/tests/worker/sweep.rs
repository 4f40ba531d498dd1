//! A sweep: teachers, their students, and the table of what came out.

use std::{fs, time::Duration};

use student_worker::{
    eval::{self, Bias, Tested},
    recipe::teacher::EnsembleRule,
    sweep::{self, Plan, Table},
};
use tokio::sync::watch;

use crate::support::Bench;

fn plan(bench: &Bench, output: &str) -> Plan {
    let text = format!(
        r#"
        name = "small"
        seeds = [1, 2]
        output = "{output}"
        [base]
        data.dir = "."
        student = {{ model_type = "mlp", input_size = 16, hidden_sizes = [8], num_labels = 3 }}
        loss = {{ alpha = 1.0, temperature = 3.0 }}
        schedule.learning_rate = 0.002
        train = {{ epochs = 2, batch_size = 16, checkpoint_every_steps = 3 }}
        [[runs]]
        name = "teacher"
        title = "the teacher"
        paper.errors = 1
        set = {{ student.hidden_sizes = [24], loss.alpha = 0.0 }}
        [[runs]]
        name = "hard"
        set.loss.alpha = 0.0
        paper.errors = 11
        [[runs]]
        name = "distilled"
        teacher.run = "teacher"
        gap_from = "hard"
        paper.errors = 3
        chart = {{ line = "students", x = 3 }}
        [[runs]]
        name = "unseen"
        seeds = [9]
        teacher = {{ run = "teacher", ensemble = "arithmetic" }}
        set.data.leave_out = [1]
        fit_bias = [1]
        "#
    );
    let file = bench.path().join("sweep.toml");
    fs::write(&file, text).unwrap();
    sweep::load(&file).unwrap()
}

async fn to_the_end(plan: &Plan) -> Table {
    let (_running, stop) = watch::channel(false);
    sweep::run(plan, 2, true, stop).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_says_what_the_runs_came_to() {
    let bench = Bench::new();
    let plan = plan(&bench, "out");
    // Seven students and three captures.
    assert_eq!(plan.len(), 10);
    let table = to_the_end(&plan).await;
    let row = |what: &str| table.rows.iter().find(|row| row.what == what).unwrap().clone();

    let data = student_worker::recipe::DataSection {
        dir: Some(bench.path().to_owned()),
        ..Default::default()
    };
    let errors = |run: &str, bias: &Bias| {
        eval::run(&plan.output.join(run).into(), &data, bias).unwrap().errors as f64
    };
    let plain = Bias::default();
    let of = |run: &str| [1, 2].map(|seed| errors(&format!("{run}-{seed}"), &plain)).to_vec();
    for (what, run) in [("the teacher", "teacher"), ("hard", "hard"), ("distilled", "distilled")] {
        let row = row(what);
        assert_eq!(row.seeds, of(run));
        assert_eq!(row.mean, (row.seeds[0] + row.seeds[1]) / 2.0);
    }
    let gap = row("distilled: part of the gap to its teacher made up");
    assert_eq!(gap.paper, Some(80.0));
    let [hard, teacher] = ["hard", "the teacher"].map(|what| row(what).mean);
    assert_eq!(gap.seeds[1], 100.0 * (hard - of("distilled")[1]) / (hard - teacher));

    // A class that the student never saw: its offset is fitted, to fewer errors.
    let before = row("unseen").mean;
    let after = row("unseen, bias of 1 set").mean;
    assert_eq!(before, errors("unseen-9", &plain));
    assert_eq!(after, errors("unseen-9", &Bias { fit: vec![1], ..Bias::default() }));
    assert!(after <= before);
    let right = row("unseen, bias of 1 set: of 1 right").mean;
    assert!((0.0..=100.0).contains(&right));
    let folders = vec![plan.output.join("teacher-1"), plan.output.join("teacher-2")];
    let both = Tested { folders, rule: EnsembleRule::Arithmetic };
    let both = eval::run(&both, &data, &plain).unwrap().errors as f64;
    assert_eq!(row("unseen: those teachers together").seeds, [both]);
    assert_eq!(table.chart["students"], [(3.0, row("distilled").mean)]);

    let written = fs::read_to_string(table.write(&plan.output).unwrap()).unwrap();
    assert!(
        written.contains("| the teacher | 1 |") && written.contains("](chart.svg)"),
        "{written}"
    );
    let json = fs::read_to_string(plan.output.join("table.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), table.rows.len());
    assert!(fs::read_to_string(plan.output.join("chart.svg")).unwrap().contains("<svg"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_sweep_goes_on_to_the_same_table() {
    let bench = Bench::new();
    let whole = to_the_end(&plan(&bench, "whole")).await;
    let plan = plan(&bench, "cut");
    let mut stops = 0;
    let table = loop {
        let (stop, stopping) = watch::channel(false);
        // Wherever that is: nothing may depend on it.
        let timer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(40 + 25 * stops)).await;
            stop.send_replace(true);
            stop.closed().await;
        });
        let ended = sweep::run(&plan, 2, true, stopping).await.unwrap();
        timer.abort();
        match ended {
            Some(table) => break table,
            None => stops += 1,
        }
    };
    assert!(stops > 0, "nothing was stopped: nothing was tested");
    assert_eq!(table, whole);
    for run in
        ["teacher-1", "teacher-2", "hard-1", "hard-2", "distilled-1", "distilled-2", "unseen-9"]
    {
        let weights = |output: &str| {
            fs::read(bench.path().join(output).join(run).join("model.safetensors")).unwrap()
        };
        assert_eq!(weights("cut"), weights("whole"), "{run}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_fails_is_named_and_ends_the_sweep() {
    let bench = Bench::new();
    let plan = plan(&bench, "out");
    fs::remove_file(bench.path().join("train-images-idx3-ubyte")).unwrap();
    let (_running, stop) = watch::channel(false);
    let error = sweep::run(&plan, 2, true, stop).await.unwrap_err().to_string();
    let named = error.starts_with("teacher-") || error.starts_with("hard-");
    assert!(named && error.contains("train-images-idx3-ubyte"), "{error}");
}
