//! Live bars for a terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Event, Observer, test_words, validation_words, without_teacher};

/// Fits a terminal of 80 columns.
const TEMPLATE: &str = "{prefix:.bold} {bar:12.cyan/dim} {pos}/{len}, {msg}, {eta} left";

/// One bar per run, with loss, examples per second, the part of the time that is spent waiting
/// for the teacher, and the time left. Tests appear above it and stay.
#[derive(Debug, Default)]
pub struct Bars {
    bar: Option<ProgressBar>,
    teacher: bool,
    /// Bars that this one stands among; tests are not told then.
    among: Option<MultiProgress>,
}

impl Bars {
    /// Bars on standard error.
    pub fn new() -> Self {
        Self::default()
    }

    /// A bar below others.
    pub(super) fn among(bars: MultiProgress) -> Self {
        Self { among: Some(bars), ..Self::default() }
    }
}

impl Observer for Bars {
    fn on(&mut self, event: &Event<'_>) {
        let started = match *event {
            Event::Started { name, done, steps, teacher, .. } => Some((name, done, steps, teacher)),
            Event::CaptureStarted { name, done, requests, .. } => {
                Some((name, done, requests, true))
            }
            _ => None,
        };
        if let Some((name, done, steps, teacher)) = started {
            let bar = ProgressBar::new(steps).with_prefix(name.to_owned()).with_position(done);
            let bar = self.among.as_ref().map_or(bar.clone(), |bars| bars.add(bar));
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            // What an earlier process did says nothing about the speed of this one.
            bar.reset_eta();
            (self.bar, self.teacher) = (Some(bar), teacher);
            return;
        }
        let Some(bar) = &self.bar else { return };
        match event {
            Event::Captured { requests, rows } => {
                let speed = *rows as f64 / bar.elapsed().as_secs_f64().max(1e-9);
                bar.set_message(format!("{speed:.0} labels/s"));
                bar.set_position(*requests);
            }
            Event::Started { .. } | Event::CaptureStarted { .. } | Event::Checkpoint { .. } => {}
            Event::Step(step) => {
                let mut words =
                    format!("loss {:.4}, {:.0} ex/s", step.loss, step.examples_per_second);
                if self.teacher {
                    words += &format!(", {:.1} % waiting", 100.0 * step.stall_fraction);
                    words += without_teacher(step);
                }
                bar.set_message(words);
                bar.set_position(step.step);
            }
            Event::Tested(_) | Event::Validated(_) if self.among.is_some() => {}
            Event::Tested(test) => bar.println(format!("{} {}", bar.prefix(), test_words(test))),
            Event::Validated(validation) => {
                bar.println(format!("{} {}", bar.prefix(), validation_words(validation)));
            }
            Event::Ended { .. } => bar.finish_and_clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
