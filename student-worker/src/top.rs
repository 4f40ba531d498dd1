//! `student-worker top`: what teachers' status pages show, in a terminal.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::{sync::watch, time::timeout};
use tonic::{codegen::Bytes, transport::Uri};

/// Time for an answer, and bytes of one.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_BYTES: usize = 16 << 20;
/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Clients and runs that are shown of a teacher.
const MOST: usize = 12;
/// Steps of brightness of a curve, the lowest first.
const MARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Width of a curve.
const CURVE: usize = 24;

/// What to look at.
#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// Where teachers' metrics are, such as http://127.0.0.1:9090.
    #[arg(required = true, value_parser = address)]
    teacher: Vec<Uri>,
    /// Look once, rather than every second; as where the output is no terminal.
    #[arg(long)]
    once: bool,
    /// Print what the teachers say as a JSON list, once.
    #[arg(long)]
    json: bool,
}

fn address(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(uri),
        _ => Err("must be an address such as http://127.0.0.1:9090".to_owned()),
    }
}

/// Shows the teachers until told to stop; whether all of them have answered the last time.
pub(crate) async fn run(
    arguments: &TopArguments,
    mut stop: watch::Receiver<bool>,
) -> io::Result<bool> {
    let once = arguments.once || arguments.json || !io::stdout().is_terminal();
    loop {
        let all = join_all(arguments.teacher.iter().map(look)).await;
        let answered = all.iter().all(Result::is_ok);
        let mut text = String::new();
        if arguments.json {
            let all = all.into_iter().map(|seen| seen.unwrap_or_else(Value::from));
            // What JSON leaves as it is and a terminal does not.
            let json = Value::Array(all.collect()).to_string();
            let escaped = |letter: char| match letter {
                '\u{7f}'..='\u{9f}' => format!("\\u{:04x}", u32::from(letter)),
                letter => letter.to_string(),
            };
            text = json.chars().map(escaped).collect();
            text.push('\n');
        } else {
            for (teacher, seen) in arguments.teacher.iter().zip(&all) {
                match seen {
                    Ok(status) => describe(&mut text, status),
                    Err(error) => text += &format!("{teacher}  {error}\n"),
                }
                text.push('\n');
            }
        }
        if once {
            io::stdout().write_all(text.as_bytes())?;
            return Ok(answered);
        }
        // From the top, over what was there, and nothing below.
        let lines = text.replace('\n', "\x1b[K\n");
        io::stdout().write_all(format!("\x1b[H{lines}\x1b[J").as_bytes())?;
        io::stdout().flush()?;
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(answered),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// What a teacher's status page shows.
async fn look(teacher: &Uri) -> Result<Value, String> {
    let page = format!("{}/status.json", teacher.to_string().trim_end_matches('/'));
    let page: Uri = page.parse().map_err(|error| format!("{error}"))?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let read = async {
        let answer = client.get(page).await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("answers {}: no Stillhouse teacher's metrics", answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
        Ok(body.map_err(|error| error.to_string())?.to_bytes())
    };
    let bytes = timeout(PATIENCE, read).await.map_err(|_| "does not answer".to_owned())??;
    let status: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if status.get("name").is_none() {
        return Err("is loading its model".to_owned());
    }
    Ok(status)
}

/// A teacher in some lines.
fn describe(text: &mut String, status: &Value) {
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    let state = plain(&status["state"]);
    let unit = plain(&status["unit"]);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{}  {}  {state}, up {}\n  {} labels/s  device {} busy  batches {} full  {} {unit} waiting  {}B held  {} \
         from the cache or shared  cache {} rows, {}B{}",
        cut(&plain(&status["name"]), 64),
        plain(&status["fingerprint"]).chars().take(16).collect::<String>(),
        time(number("/uptime_seconds")),
        short(number("/rows_per_second")),
        percent(number("/device/busy_fraction")),
        percent(number("/device/mean_fill")),
        short(number("/queue/cost")),
        short(number("/queue/held_bytes")),
        percent(number("/cached_fraction")),
        short(number("/cache/entries")),
        short(number("/cache/memory_bytes")),
        status
            .pointer("/cache/disk_bytes")
            .and_then(Value::as_f64)
            .map_or_else(String::new, |bytes| format!(", on disk {}B", short(bytes))),
    );
    let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    let (batches, clients, runs) = (list("batches"), list("clients"), list("runs"));
    if !batches.is_empty() {
        let part =
            |key: &'static str| batches.iter().map(move |batch| batch[key].as_f64().unwrap_or(0.0));
        let mut reasons = BTreeMap::<String, usize>::new();
        for batch in &batches {
            *reasons.entry(plain(&batch["reason"])).or_default() += 1;
        }
        let reasons: Vec<String> =
            reasons.iter().map(|(reason, times)| format!("{times} {reason}")).collect();
        let _ = writeln!(
            text,
            "  last batches  {}  launched: {}  forward {} ms at most",
            curve(&part("fill").collect::<Vec<f64>>(), 1.0),
            reasons.join(", "),
            short(part("forward_ms").fold(0.0, f64::max)),
        );
    }
    if !clients.is_empty() {
        let _ = writeln!(
            text,
            "  {:24} {:>7} {:>9} {:>7} {:>8} {:>10} {:>7} {:>9}",
            "client", "share", "labels/s", "weight", "waiting", "refused/s", "waits", "in all"
        );
    }
    for client in clients.iter().take(MOST) {
        let number = |key: &str| client[key].as_f64().unwrap_or(0.0);
        let _ = writeln!(
            text,
            "  {:24} {:>7} {:>9} {:>7} {:>8} {:>10} {:>7} {:>9}",
            cut(&plain(&client["name"]), 24),
            percent(number("share")),
            short(number("rows_per_second")),
            short(number("weight")),
            short(number("queued")),
            short(number("refused_per_second")),
            stall(&client["name"], &runs).map_or_else(String::new, percent),
            short(number("total_rows")),
        );
    }
    if !runs.is_empty() {
        let _ = writeln!(
            text,
            "  {:24} {:>17} {:>9} {:>9} {:>7}  loss so far",
            "run", "step", "loss", "rate/s", "waits"
        );
    }
    for run in runs.iter().take(MOST) {
        let number = |key: &str| run[key].as_f64().unwrap_or(0.0);
        let losses: Vec<f64> = run["curve"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|point| point.get(1).and_then(Value::as_f64))
            .collect();
        let _ = writeln!(
            text,
            "  {:24} {:>17} {:>9} {:>9} {:>7}  {}",
            cut(&plain(&run["run"]), 24),
            format!("{} of {}", number("step"), number("steps")),
            losses.last().map_or_else(String::new, |loss| short(*loss)),
            short(number("examples_per_second")),
            percent(number("stall_fraction")),
            curve(&losses, losses.iter().copied().fold(0.0, f64::max)),
        );
    }
}

/// The part of the time that a client's students wait for labels, the mean of those that report; none: none do.
fn stall(client: &Value, runs: &[Value]) -> Option<f64> {
    let own: Vec<f64> = runs
        .iter()
        .filter(|run| run["client"] == *client && run["seconds_ago"].as_f64().unwrap_or(0.0) < 30.0)
        .map(|run| run["stall_fraction"].as_f64().unwrap_or(0.0))
        .collect();
    (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
}

/// Text as a terminal may have it: names come from anybody, and must not move the cursor nor turn the line
/// around.
fn plain(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    let moves = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().map(|letter| if moves(letter) { '?' } else { letter }).collect()
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most - 1).collect();
    cut.push('…');
    cut
}

fn percent(part: f64) -> String {
    format!("{:.0} %", 100.0 * part)
}

fn short(number: f64) -> String {
    match number.abs() {
        large if large >= 1e9 => format!("{:.1} G", number / 1e9),
        large if large >= 1e6 => format!("{:.1} M", number / 1e6),
        large if large >= 1e4 => format!("{:.1} k", number / 1e3),
        large if large >= 100.0 || number.fract() == 0.0 => format!("{number:.0}"),
        _ => format!("{number:.3}"),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Numbers in one line, of which `most` is as high as it is.
fn curve(numbers: &[f64], most: f64) -> String {
    let step = numbers.len().div_ceil(CURVE).max(1);
    let mark = |part: &[f64]| {
        let mean = part.iter().sum::<f64>() / part.len() as f64;
        let at = (mean / most.max(f64::MIN_POSITIVE) * (MARKS.len() - 1) as f64).round();
        MARKS[(at.max(0.0) as usize).min(MARKS.len() - 1)]
    };
    numbers.chunks(step).map(mark).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_teacher_is_described_and_names_cannot_write_to_the_terminal() {
        let status = json!({
            "name": "mnist", "fingerprint": "00112233445566778899", "state": "serving", "uptime_seconds": 120.0, "unit": "rows",
            "rows_per_second": 12_345.0, "cached_fraction": 0.25,
            "device": { "busy_fraction": 0.5, "mean_fill": 0.75 },
            "queue": { "cost": 42, "held_bytes": 7_000_000 },
            "cache": { "entries": 321, "memory_bytes": 3_000_000, "disk_bytes": 5_000_000 },
            "batches": [{ "fill": 0.5, "forward_ms": 2.0, "reason": "waited" },
                        { "fill": 1.0, "forward_ms": 3.0, "reason": "full" }],
            "clients": [{ "name": "a\u{1b}[2J\u{202e}b", "share": 1.0, "weight": 4,
                          "total_rows": 1_200_000 }],
            "runs": [{ "run": "x".repeat(60), "client": "a\u{1b}[2J\u{202e}b", "step": 3, "steps": 9, "stall_fraction": 0.125,
                       "curve": [[1, 4.0], [2, 2.0], [3, 0.5]] }],
        });
        let mut text = String::new();
        describe(&mut text, &status);
        assert!(!text.contains('\u{1b}'), "{text:?}");
        for part in [
            "mnist  0011223344556677  serving, up 2 min",
            "12.3 k labels/s",
            "50 %",
            "7.0 MB held",
            "cache 321 rows, 3.0 MB, on disk 5.0 MB",
            "    12 %     1.2 M",
            "last batches  ▅█  launched: 1 full, 1 waited  forward 3 ms at most",
            "a?[2J?b",
            "3 of 9",
            "█▅▂",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        // What a server leaves out, or sends as something else, is not missed.
        describe(&mut text, &json!({ "clients": 3, "runs": [{}] }));
    }

    #[test]
    fn only_addresses_are_looked_at() {
        assert!(address("http://10.0.0.1:9090").is_ok());
        for bad in ["10.0.0.1:9090", "https://a", "http://", "a b"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
