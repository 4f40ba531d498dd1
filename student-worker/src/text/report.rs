//! The report of a finished run: what it was, its figures and their charts.

use std::path::PathBuf;

use super::{recipe::TextRecipe, run::TextOutcome};
use crate::{
    plot::{Chart, Scale, Series},
    run_folder::{
        RunFolder,
        metrics::{Record, ValidationRecord},
        report,
    },
    train::{Error, without_teacher},
};

/// Writes the report of a run that this process took on after `begins_at` steps.
pub(super) fn write(
    recipe: &TextRecipe,
    outcome: &TextOutcome,
    begins_at: u64,
    run: &mut RunFolder,
) -> Result<PathBuf, Error> {
    let since = |what: &str| report::since(what, begins_at);
    let mut facts = vec![
        ("parameters of the student".to_owned(), outcome.parameters.to_string()),
        ("steps".to_owned(), outcome.steps.to_string()),
        ("tokens of a step".to_owned(), format!("at most {}", recipe.train.batch_tokens)),
        (since("tokens per second"), format!("{:.0}", outcome.tokens_per_second)),
        (since("seconds"), format!("{:.1}", outcome.seconds)),
    ];
    match &outcome.teacher {
        None => {
            let what = if recipe.data.classifies() { "the texts' own" } else { "the text alone" };
            facts.push(("labels".to_owned(), what.to_owned()));
        }
        Some(fingerprint) => {
            let (hard, soft) = recipe.loss.weights();
            let (name, t) = (recipe.loss.divergence.name(), recipe.loss.temperature);
            facts.push(("loss".to_owned(), format!("{hard:.3} CE + {soft:.3} T² {name}; T = {t}")));
            facts.push(("teacher".to_owned(), format!("`{fingerprint}`")));
            let waiting = format!("{:.1} %", 100.0 * outcome.stall_fraction);
            facts.push((since("time spent waiting for the teacher"), waiting));
            facts.extend(without_teacher(outcome.steps_without_teacher));
        }
    }
    let records = run.records()?;
    let validations: Vec<&ValidationRecord> = records
        .iter()
        .filter_map(|record| match record {
            Record::Validation(validation) => Some(validation),
            Record::Step(_) | Record::Test(_) => None,
        })
        .collect();
    if let Some(last) = validations.last() {
        facts.push(("at the end".to_owned(), last.words()));
    }
    let line = |name: &str, figure: &dyn Fn(&ValidationRecord) -> Option<f64>| Series {
        name: name.to_owned(),
        points: validations.iter().filter_map(|v| Some((v.step as f64, figure(v)?))).collect(),
    };
    let mut losses = report::parts_of_loss(&records);
    losses.retain(|series| series.points.len() > 1);
    let chart = |title: &str, y_label: &str, scale, series| Chart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        scale,
        series,
    };
    let mut last = vec![line("validation loss", &|v| Some(v.loss))];
    let kl = line("KL from the teacher", &|v| v.teacher_kl);
    if !kl.points.is_empty() {
        last.push(kl);
    }
    let mut charts = vec![
        chart("Training loss", "loss (nats)", Scale::Logarithmic, losses),
        chart("Validation", "nats per label", Scale::Fitted, last),
    ];
    let accuracy = line("accuracy", &ValidationRecord::accuracy_percent);
    let quality = if accuracy.points.is_empty() { "perplexity" } else { "accuracy" };
    if !accuracy.points.is_empty() {
        charts.push(chart("Accuracy", "% of the texts", Scale::Fitted, vec![accuracy]));
    }
    let mut table = format!(
        "| step | validation loss | {quality} | KL from the teacher | the same first choice |\n\
         |---:|---:|---:|---:|---:|\n"
    );
    for v in validations {
        let kl = v.teacher_kl.map_or_else(String::new, |kl| format!("{kl:.4}"));
        let part = v.teacher_agreement_percent;
        let part = part.map_or_else(String::new, |part| format!("{part:.1} %"));
        let quality = match v.accuracy_percent() {
            Some(accuracy) => format!("{accuracy:.2} %"),
            None => format!("{:.3}", v.perplexity()),
        };
        let (step, loss) = (v.step, v.loss);
        table += &format!("| {step} | {loss:.4} | {quality} | {kl} | {part} |\n");
    }
    let text = report::page(&recipe.name, &facts, "losses", &format!("## Validation\n\n{table}"));
    Ok(report::put(run.path(), &charts, text)?)
}
