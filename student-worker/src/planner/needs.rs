//! From what was measured to what is needed.

use std::fmt;

use serde::Serialize;

use super::teacher::Teacher;

/// Most batches that are of use ahead.
const MOST_PREFETCH: usize = 64;
/// Beside its labels, what a row costs that the student keeps.
const KEPT_OVERHEAD: f64 = 128.0;

/// What was measured, and what the recipe says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) students: u32,
    pub(super) is_text: bool,
    /// Rows, or tokens, a second, on hard labels alone.
    pub(super) student_per_second: f64,
    /// Rows, or tokens, of a step.
    pub(super) per_step: usize,
    /// Rows, or sequences, of an epoch.
    pub(super) epoch_rows: usize,
    /// Rows, or tokens, of a row or a sequence.
    pub(super) units_per_row: usize,
    pub(super) prefetch: usize,
    pub(super) kept_bytes: u64,
    /// Whether the same rows come in every epoch, and whether with the same labels.
    pub(super) rows_again: bool,
    pub(super) labels_again: bool,
    pub(super) teacher: Teacher,
}

/// What is needed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Needs {
    students: u32,
    /// What is counted.
    unit: &'static str,
    /// Of one student, on hard labels alone.
    student_per_second: f64,
    step_ms: f64,
    /// Of one teacher that is kept busy with rows that it has not seen.
    teacher_per_second: f64,
    request_latency_ms: f64,
    /// Teachers for all students to run at their own rate, where each has rows of its own.
    teachers_own_rows: u64,
    /// The same where all of them train on the same rows, which are computed once.
    teachers_same_rows: u64,
    /// Part of the time that the students wait with one teacher, in the first epoch, by whether rows
    /// are shared.
    stall_with_one_own_rows: f64,
    stall_with_one_same_rows: f64,
    /// Batches to ask for ahead.
    prefetch: usize,
    recipe_prefetch: usize,
    bytes_per_label: f64,
    /// To all students together, and from them.
    label_bytes_per_second: f64,
    input_bytes_per_second: f64,
    /// Rows, or sequences, of an epoch, and the teacher's time for them.
    epoch_rows: usize,
    epoch_teacher_seconds: f64,
    /// What every later epoch saves of that, for each student: all of it, where rows are the same in every
    /// epoch and the student has room for their labels, or the teacher's cache for their outputs.
    saved_seconds_per_epoch: f64,
    /// For the student to keep all labels of an epoch (teacher.kept_bytes); 0 where they are others in each.
    kept_bytes_needed: f64,
    kept_bytes: u64,
    /// For the teacher's cache to keep all rows of an epoch; 0 where they are others in each, null where the
    /// teacher does not tell.
    cache_bytes_needed: Option<f64>,
}

impl Needs {
    pub(super) fn of(measured: &Measured) -> Self {
        let Measured { students, is_text, student_per_second, per_step, epoch_rows, .. } =
            *measured;
        let Measured { teacher, rows_again, labels_again, .. } = *measured;
        let student = student_per_second.max(1e-9);
        let step = per_step as f64 / student;
        let own = student * f64::from(students) / teacher.per_second.max(1e-9);
        let same = student / teacher.per_second.max(1e-9);
        let teachers = |load: f64| (load.ceil() as u64).max(1);
        // A student that is served more slowly than it is waits for the rest.
        let stall = |load: f64| (1.0 - 1.0 / load).max(0.0);
        let (rows, units_per_row) = (epoch_rows as f64, measured.units_per_row as f64);
        let labels = rows * teacher.labels_per_row;
        // While one batch is trained on, those behind it are on their way.
        let ahead = (teacher.latency / step.max(1e-9)).ceil() as usize + 1;
        let epoch_teacher_seconds = rows * units_per_row / teacher.per_second.max(1e-9);
        let all = student * f64::from(students);
        Self {
            students,
            unit: if is_text { "tokens" } else { "rows" },
            student_per_second,
            step_ms: step * 1e3,
            teacher_per_second: teacher.per_second,
            request_latency_ms: teacher.latency * 1e3,
            teachers_own_rows: teachers(own),
            teachers_same_rows: teachers(same),
            stall_with_one_own_rows: stall(own),
            stall_with_one_same_rows: stall(same),
            prefetch: ahead.clamp(1, MOST_PREFETCH),
            recipe_prefetch: measured.prefetch,
            bytes_per_label: teacher.bytes_per_label,
            label_bytes_per_second: teacher.bytes_per_label * all * teacher.labels_per_row
                / units_per_row,
            input_bytes_per_second: teacher.input_bytes_per_unit * all,
            epoch_rows,
            epoch_teacher_seconds,
            saved_seconds_per_epoch: if rows_again { epoch_teacher_seconds } else { 0.0 },
            kept_bytes_needed: match labels_again {
                true => labels * teacher.kept_bytes_per_label + rows * KEPT_OVERHEAD,
                false => 0.0,
            },
            kept_bytes: measured.kept_bytes,
            cache_bytes_needed: match rows_again {
                true => teacher.cached_bytes_per_row.map(|bytes| bytes * rows),
                false => Some(0.0),
            },
        }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: f64| format!("{:.0} %", 100.0 * part);
        let unit = self.unit;
        writeln!(
            out,
            "a student    {} {unit}/s alone, {:.2} ms a step",
            amount(self.student_per_second),
            self.step_ms
        )?;
        writeln!(
            out,
            "a teacher    {} {unit}/s of rows that it has not seen; a request alone {:.2} ms",
            amount(self.teacher_per_second),
            self.request_latency_ms
        )?;
        writeln!(
            out,
            "teachers     {} for {} student{} with rows of their own, {} if all train on the same rows",
            self.teachers_own_rows,
            self.students,
            if self.students == 1 { "" } else { "s" },
            self.teachers_same_rows
        )?;
        writeln!(
            out,
            "             with one, students wait {} of their time in the first epoch ({} if all train on \
             the same rows)",
            percent(self.stall_with_one_own_rows),
            percent(self.stall_with_one_same_rows)
        )?;
        writeln!(
            out,
            "prefetch     {} batches ahead (teacher.prefetch is {})",
            self.prefetch, self.recipe_prefetch
        )?;
        writeln!(
            out,
            "network      {:.1} bytes a label: {}B/s of labels, {}B/s of inputs",
            self.bytes_per_label,
            amount(self.label_bytes_per_second),
            amount(self.input_bytes_per_second)
        )?;
        if self.saved_seconds_per_epoch == 0.0 {
            return write!(out, "later epochs save nothing: rows are new in each, or there is one");
        }
        let rows = if unit == "tokens" { "sequences" } else { "rows" };
        let cache = self.cache_bytes_needed.map_or_else(String::new, |bytes| {
            format!(", which take {}B there (cache.memory_bytes, cache.disk_bytes)", amount(bytes))
        });
        write!(out, "later epochs save {:.1} s of a teacher each", self.saved_seconds_per_epoch)?;
        let (needed, kept) = (amount(self.kept_bytes_needed), amount(self.kept_bytes as f64));
        if self.kept_bytes_needed == 0.0 {
            write!(
                out,
                ", if its cache has room for {} {rows}{cache}; draws are new in each, and the \
                 student keeps none",
                self.epoch_rows
            )
        } else if self.kept_bytes as f64 >= self.kept_bytes_needed {
            write!(
                out,
                "; {} {rows} of an epoch need {needed}B in the student (teacher.kept_bytes is {kept}B: \
                 they fit)",
                self.epoch_rows
            )
        } else {
            write!(
                out,
                "; {} {rows} of an epoch need {needed}B in the student (teacher.kept_bytes is {kept}B), \
                 and the rest comes from the teacher's cache, if it has room for the rows{cache}",
                self.epoch_rows
            )
        }
    }
}

/// A number as a person reads it.
fn amount(number: f64) -> String {
    match number {
        large if large >= 1e9 => format!("{:.2} G", large / 1e9),
        large if large >= 1e6 => format!("{:.2} M", large / 1e6),
        large if large >= 1e3 => format!("{:.1} k", large / 1e3),
        small => format!("{small:.0} "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(students: u32) -> Measured {
        Measured {
            students,
            is_text: false,
            student_per_second: 10_000.0,
            per_step: 100,
            epoch_rows: 60_000,
            units_per_row: 1,
            prefetch: 4,
            kept_bytes: 1 << 20,
            rows_again: true,
            labels_again: true,
            teacher: Teacher {
                per_second: 4_000.0,
                latency: 0.025,
                labels_per_row: 1.0,
                bytes_per_label: 44.0,
                input_bytes_per_unit: 784.0,
                kept_bytes_per_label: 40.0,
                cached_bytes_per_row: Some(168.0),
            },
        }
    }

    #[test]
    fn needs_follow_from_the_rates() {
        let needs = Needs::of(&measured(4));
        assert_eq!((needs.teachers_own_rows, needs.teachers_same_rows), (10, 3));
        assert!((needs.stall_with_one_own_rows - 0.9).abs() < 1e-9);
        assert!((needs.stall_with_one_same_rows - 0.6).abs() < 1e-9);
        // 25 ms are two and a half steps of 10 ms.
        assert_eq!(needs.prefetch, 4);
        assert!((needs.label_bytes_per_second - 1.76e6).abs() < 1.0);
        assert!((needs.saved_seconds_per_epoch - 15.0).abs() < 1e-9);
        assert!((needs.kept_bytes_needed - 10.08e6).abs() < 1.0);
        let text = needs.to_string();
        let expected = [
            "10 for 4 students",
            "3 if all train on",
            "1.76 MB/s",
            "the rest comes from",
            "take 10.08 MB there",
        ];
        for part in expected {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_fast_teacher_is_enough_and_nobody_waits() {
        let mut fast = measured(1);
        fast.teacher.per_second = 1e9;
        let needs = Needs::of(&fast);
        assert_eq!((needs.teachers_own_rows, needs.teachers_same_rows), (1, 1));
        assert!(needs.stall_with_one_own_rows.abs() < 1e-9);
        let new = Needs::of(&Measured { rows_again: false, labels_again: false, ..fast });
        assert!(new.saved_seconds_per_epoch == 0.0 && new.to_string().contains("save nothing"));
    }

    /// The teacher's cache holds what is before the draws.
    #[test]
    fn draws_are_new_in_every_epoch_and_the_forward_passes_are_not() {
        let needs = Needs::of(&Measured { labels_again: false, ..measured(1) });
        assert!((needs.saved_seconds_per_epoch - 15.0).abs() < 1e-9);
        assert!(needs.kept_bytes_needed == 0.0);
        let text = needs.to_string();
        assert!(
            text.contains("if its cache has room for 60000 rows, which take 10.08 MB"),
            "{text}"
        );
    }

    /// A classifier of texts: sequences of 128 tokens with one label each.
    #[test]
    fn a_sequence_may_have_one_label() {
        let mut texts = Measured { is_text: true, units_per_row: 128, ..measured(1) };
        texts.epoch_rows = 1000;
        let one = Needs::of(&texts);
        assert!((one.label_bytes_per_second - 44.0 * 10_000.0 / 128.0).abs() < 1e-6);
        assert!((one.epoch_teacher_seconds - 32.0).abs() < 1e-9);
        assert!((one.kept_bytes_needed - 168.0 * 1000.0).abs() < 1e-6);
        texts.teacher.labels_per_row = 128.0;
        let each = Needs::of(&texts);
        assert!((each.label_bytes_per_second - 440_000.0).abs() < 1e-6);
        assert!((each.kept_bytes_needed - (40.0 * 128.0 + 128.0) * 1000.0).abs() < 1e-6);
    }
}
