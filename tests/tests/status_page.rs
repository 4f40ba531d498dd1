//! The status page, in a browser: `cargo test -p stillhouse-tests --test status_page -- --ignored`, with
//! `chromium` in the path. `STILLHOUSE_SCREENSHOT=FILE` leaves a picture of it.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{
    env,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use stillhouse_tests::{
    client, models,
    process::{Teacher, binary, pause},
    student::Student,
};

/// What a client might call itself.
const MARKUP: &str = "<img src=x onerror=document.title=1>";

/// What the browser makes of a page.
fn browse(url: &str, arguments: &[&str]) -> String {
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
    // Some looks at the server, without waiting for them.
    chromium.arg("--virtual-time-budget=6000").args(arguments).arg(url).stderr(Stdio::null());
    let output =
        chromium.output().expect("chromium is in the path (Debian: apt-get install chromium)");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs a browser"]
fn a_browser_shows_what_is_going_on() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["mnist-teacher", "replica"].map(|name| folder.path().join(name));
    for model in [&one, &two] {
        std::fs::create_dir(model).unwrap();
        models::write_mlp(model, 784, &[1200, 1200], 10, 1);
    }
    let second = Teacher::start(&two, &[]);
    let peers = format!("status_peers=[\"{}\"]", second.metrics_url());
    let cache = folder.path().join("cache").display().to_string();
    let teacher = Teacher::start(&one, &["--cache-dir", &cache, "--set", &peers]);

    // Students of two teams and a client with a name that is none.
    let students = [("small", 256, 0.9), ("tiny", 16, 0.9), ("night-sweep", 64, 0.5)].map(|(name, width, alpha)| {
        let sections = format!(
            "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = [{width}], num_labels = 10 }}\n\
             loss = {{ alpha = {alpha}, temperature = 4.0 }}\n{}client = \"{}\"\nprefetch = 1\n\
             [train]\nepochs = 1000\nbatch_size = 64\neval_every = 1000\n",
            teacher.section(),
            if name.starts_with("night") { "team-b" } else { "team-a" },
        );
        let student = Student::new(folder.path(), name, 6400, &sections);
        let running = student.start(&[]);
        (student, running)
    });
    // Until there are curves.
    let begun = Instant::now();
    let reports = "stillhouse_teacher_reports_total{result=\"taken\"}";
    while teacher.metric(reports) < 30.0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "students do not report");
        pause(Duration::from_millis(100));
    }

    let url = teacher.metrics_url();
    if let Some(file) = env::var_os("STILLHOUSE_SCREENSHOT") {
        let file = format!("--screenshot={}", file.to_str().unwrap());
        browse(&url, &[&file, "--window-size=1280,1240"]);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = client::connect(teacher.address()).await;
        let mut request = client::request(1, &[0.5; 784], 784);
        request.client = MARKUP.to_owned();
        client.label(request).await.unwrap();
    });
    let page = browse(&url, &["--dump-dom"]);
    // Without the script's own words.
    let page = page.split("<script>").next().unwrap();
    for part in [
        "<h1 id=\"name\">mnist-teacher</h1>",
        ">serving<",
        "labels per second",
        "Its students wait",
        ">Cache on disk<",
        // The other replica's.
        ">none<",
        "class=\"curve\"",
        "class=\"batch\"",
        ">small<",
        ">tiny<",
        "night-sweep",
        "team-a",
        "team-b",
        "this one",
        second.metrics_url().as_str(),
        // As text.
        "&lt;img src=x onerror",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
    assert!(!page.contains("<img"), "a client's name is markup");
    assert!(!page.contains("no answer"), "{page}");
    assert!(page.matches("class=\"curve\"").count() >= 4, "three students and the queue");

    // Shares are of one whole, also of clients that came at other times.
    let json = Command::new(binary("student-worker")).args(["top", "--json", &url]).output();
    let seen: serde_json::Value = serde_json::from_slice(&json.unwrap().stdout).unwrap();
    let shares = seen[0]["clients"].as_array().unwrap().iter();
    let whole: f64 = shares.map(|client| client["share"].as_f64().unwrap()).sum();
    assert!((whole - 1.0).abs() < 1e-9, "{seen}");

    // The same in a terminal.
    let top = Command::new(binary("student-worker")).args(["top", &url]).output().unwrap();
    let text = String::from_utf8(top.stdout).unwrap();
    for part in ["tiny", "team-b", ", on disk ", "last batches  "] {
        assert!(top.status.success() && text.contains(part), "{part} is not in\n{text}");
    }
    let nobody =
        Command::new(binary("student-worker")).args(["top", "http://127.0.0.1:1"]).output();
    assert_eq!(nobody.unwrap().status.code(), Some(75));

    for (_, mut running) in students {
        drop((running.kill(), running.wait()));
    }
}
