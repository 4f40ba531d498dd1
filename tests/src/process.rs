//! The binaries, started, watched and killed.

use std::{
    env,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Longest time anything here waits for a process.
const PATIENCE: Duration = Duration::from_secs(60);

/// Path of a binary of this workspace, built in this build's profile.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // Test binaries lie in `deps` beside the binaries, the acceptance binary among them.
        let mut folder =
            env::current_exe().expect("own path").parent().expect("a folder").to_owned();
        if folder.ends_with("deps") {
            folder.pop();
        }
        build(&folder);
        folder
    });
    folder.join(name)
}

/// A test may be run before the binaries were built, or after they went stale.
fn build(folder: &Path) {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "-p", "teacher-server", "-p", "student-worker"]);
    // With what this package asks of their dependencies, too: otherwise they were built twice.
    cargo.args(["-p", "stillhouse-tests", "--bins"]);
    if cfg!(feature = "otlp") {
        cargo.args(["--features", "stillhouse-tests/otlp"]);
    }
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let status = cargo.current_dir(manifest).status().expect("cargo runs");
    assert!(status.success(), "the binaries do not build");
}

/// Arguments of a teacher that computes every row anew: for what is about the forward pass itself.
pub const UNCACHED: [&str; 2] = ["--set", "cache.enabled=false"];

/// The same command on one core of this machine. Output that is piped must be said again. It ends with the
/// thread that starts it, however that ends: nobody else would stop one that is to train without an end.
pub fn on_core(core: usize, command: &Command) -> Command {
    let mut pinned = Command::new("setpriv");
    pinned
        .args(["--pdeathsig", "KILL", "taskset", "-c"])
        .arg(core.to_string())
        .arg(command.get_program())
        .args(command.get_args());
    pinned
}

/// A `teacher-server` process. Killed when dropped.
pub struct Teacher {
    child: Child,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Teacher {
    /// Starts one for a model's folder on a free port, with further arguments, and waits until it
    /// serves.
    pub fn start(model: &Path, arguments: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), model, arguments)
    }

    /// As [`Teacher::start`], on an address of the caller's.
    pub fn start_on(listen: SocketAddr, model: &Path, arguments: &[&str]) -> Self {
        Self::spawn(Self::command(listen, model, arguments))
    }

    /// The command of a teacher, for a caller that changes it (pins it to a core, say).
    pub fn command(listen: SocketAddr, model: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("teacher-server"));
        command.arg("--model").arg(model).arg("--listen").arg(listen.to_string());
        command.args(["--metrics-listen", "127.0.0.1:0", "--log-format", "json"]).args(arguments);
        command
    }

    /// Starts a command that runs a teacher and waits until it serves.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("teacher-server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let mut log = String::new();
        let mut metrics = None;
        let address = loop {
            let mut line = String::new();
            if lines.read_line(&mut line).expect("a line") == 0 {
                let status = child.wait().expect("it ended");
                panic!("teacher-server ended with {status} before it served:\n{log}");
            }
            log += &line;
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            let address = || event["address"].as_str().and_then(|text| text.parse().ok());
            match event["message"].as_str() {
                Some("metrics") => metrics = address(),
                Some("serving") => break address().expect("an address"),
                _ => {}
            }
        };
        let log = Arc::new(Mutex::new(log));
        let reader = Some(collect(lines, Arc::clone(&log)));
        Self { child, address, metrics, log, reader }
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves, as a recipe names it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The section of a recipe that asks it for labels, in every epoch anew.
    pub fn section(&self) -> String {
        format!("[teacher]\nkind = \"endpoints\"\nendpoints = [{:?}]\nkept_bytes = 0\n", self.url())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Where its metrics and its status page are.
    pub fn metrics_url(&self) -> String {
        format!("http://{}/", self.metrics.expect("a metrics listener"))
    }

    /// What Prometheus would scrape.
    pub fn metrics(&self) -> String {
        scrape(self.metrics.expect("a metrics listener"))
    }

    /// Value of a series, by its full name with labels.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.pid())
    }

    /// CPU time so far, user and system.
    pub fn cpu_time(&self) -> Duration {
        cpu_time(self.pid())
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal(self.pid(), "TERM");
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let status = wait(&mut self.child);
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }
}

impl Drop for Teacher {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What Prometheus would scrape at an address.
pub fn scrape(address: SocketAddr) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn collect(mut lines: BufReader<ChildStderr>, log: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            log.lock().unwrap().push_str(&line);
            line.clear();
        }
    })
}

/// Waits for a process that should end by itself, and soon.
pub fn wait(child: &mut Child) -> ExitStatus {
    wait_within(child, PATIENCE)
}

/// As [`wait`], for as long as this.
pub fn wait_within(child: &mut Child, patience: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if start.elapsed() > patience {
            drop(child.kill());
            panic!("process {} did not end within {patience:?}", child.id());
        }
        pause(Duration::from_millis(10));
    }
}

/// Sends a signal by name: `TERM`, `KILL`, `STOP`, ...
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status();
    assert!(status.expect("sh runs").success(), "no process {pid}");
}

/// Resident memory of a process, in bytes; 0 of one that is gone.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Clock ticks per second of `/proc`, fixed on Linux.
pub const TICKS: f64 = 100.0;

/// CPU time of a process so far, user and system.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Fields 14 and 15; counted from behind the command's name, which may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    Duration::from_secs_f64(ticks / TICKS)
}

/// Blocks this thread. For tests and scenarios, which have nothing else to do on it.
#[expect(clippy::disallowed_methods, reason = "no async runtime runs on the threads of a test")]
pub fn pause(time: Duration) {
    thread::sleep(time);
}
