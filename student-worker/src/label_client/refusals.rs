//! Which refusals of a request are believed.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// For how long, at most, a replica that refuses a request again and again is not believed while others,
/// not well just now, may come back and do better: longer than a teacher takes to start.
pub(super) const OTHERS_MAY_COME: Duration = Duration::from_secs(30);

/// The last refusals of a request's parts, by their first units. One that is repeated is believed; one
/// that is not may be of what became of the request on the way, or of the teacher.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<u32, Refusal>>);

#[derive(Debug)]
struct Refusal {
    words: String,
    endpoint: usize,
    /// When this endpoint first said so.
    since: Instant,
}

/// Who refused a part, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct By {
    pub(super) endpoint: usize,
    pub(super) others: Others,
    /// How long others that are not well are waited for.
    pub(super) patience: Duration,
    pub(super) now: Instant,
}

/// The other replicas that could be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    None,
    /// They are not well just now, and may be again.
    Unwell,
    Well,
}

impl Refusals {
    /// Notes a refusal of the part that begins with a unit; whether it was refused so before: by another
    /// replica, or by the same one where no other can be asked.
    pub(super) fn repeated(&self, first: u32, words: &str, by: By) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.get(&first).filter(|before| before.words == words);
        let same = before.filter(|before| before.endpoint == by.endpoint);
        let since = same.map_or(by.now, |before| before.since);
        let is_repeated = match (before, same, by.others) {
            (None, ..) | (_, Some(_), Others::Well) => false,
            (_, None, _) | (_, _, Others::None) => true,
            (_, _, Others::Unwell) => by.now.saturating_duration_since(since) >= by.patience,
        };
        let (words, endpoint) = (words.to_owned(), by.endpoint);
        last.insert(first, Refusal { words, endpoint, since });
        is_repeated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_believed_when_it_is_repeated_by_one_that_can_be_told_from_the_first() {
        let now = Instant::now();
        let patience = OTHERS_MAY_COME;
        let by = |endpoint, others| By { endpoint, others, patience, now };
        for (others, same, another) in
            [(Others::None, true, true), (Others::Unwell, false, true), (Others::Well, false, true)]
        {
            let refusals = Refusals::default();
            assert!(!refusals.repeated(0, "no", by(1, others)), "it is the first");
            assert!(!refusals.repeated(0, "never", by(1, others)), "that is something else");
            assert!(!refusals.repeated(8, "never", by(1, others)), "another part");
            assert_eq!(refusals.repeated(0, "never", by(1, others)), same, "{others:?}");
            assert_eq!(refusals.repeated(0, "never", by(2, others)), another, "{others:?}");
        }
    }

    #[test]
    fn others_that_are_not_well_are_waited_for_only_for_a_while() {
        let (start, refusals) = (Instant::now(), Refusals::default());
        let after = |seconds: f64, endpoint| By {
            endpoint,
            others: Others::Unwell,
            patience: OTHERS_MAY_COME,
            now: start + Duration::from_secs_f64(seconds),
        };
        assert!(!refusals.repeated(0, "no", after(0.0, 1)));
        assert!(!refusals.repeated(0, "no", after(29.9, 1)));
        assert!(refusals.repeated(0, "no", after(30.0, 1)));
        assert!(!refusals.repeated(0, "something else", after(31.0, 1)));
        assert!(!refusals.repeated(0, "no", after(60.0, 1)), "it has not said so all the time");
    }
}
