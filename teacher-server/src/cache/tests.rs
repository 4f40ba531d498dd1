//! Requests that come, go and are run in any order.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use stillhouse_runtime::clock;
use tokio::sync::oneshot::{Receiver, error::TryRecvError};

use super::{patience::LIMIT, *};
use crate::{
    error::ServeError, gathering::Done, held::Ledger, settings::ClientSettings, units::Unit,
};

const CLASSES: usize = 3;

fn cache() -> RowCache {
    let layout = Layout::Logits { members: 1, classes: CLASSES, hidden: 2 };
    RowCache::open(&Settings::default(), &[1; 32], layout).unwrap()
}

fn key(row: u8) -> Key {
    Key([row; 32])
}

fn output(row: u8, with_hidden: bool) -> Output {
    vec![f32::from(row); CLASSES + if with_hidden { 2 } else { 0 }].into()
}

/// A request under way, as the scheduler and its client see it.
struct Asked {
    rows: Vec<u8>,
    gathering: Arc<Gathering>,
    answer: Receiver<Result<Done, ServeError>>,
    /// What it queues for, until it is launched.
    queued: Option<Vec<usize>>,
}

impl Asked {
    fn new(cache: &RowCache, rows: Vec<u8>, needs_hidden: bool) -> Self {
        let units = rows.iter().map(|&row| Unit { key: Some(key(row)), labels: 1 }).collect();
        let (gathering, answer) = Gathering::new(units, needs_hidden, Trace::default());
        let missing = cache.register(&gathering);
        let queued = (!missing.is_empty()).then_some(missing);
        Self { rows, gathering, answer, queued }
    }
}

/// What the device does with the requests that it launches together; how many rows it ran.
fn launch(cache: &RowCache, asked: &mut [&mut Asked], runs: &mut [usize; 256]) {
    let keeps_hidden = cache.keeps_hidden();
    let mut outputs: Vec<(Key, Output)> = Vec::new();
    for asked in asked {
        let Some(units) = asked.queued.take() else { continue };
        let missing = asked.gathering.launch(&units);
        for (unit, _) in units.into_iter().zip(missing).filter(|(_, missing)| *missing) {
            let row = asked.rows[unit];
            if outputs.iter().all(|(seen, _)| *seen != key(row)) {
                outputs.push((key(row), output(row, keeps_hidden)));
                runs[row as usize] += 1;
            }
        }
    }
    cache.complete(&outputs, &Trace::default());
}

proptest! {
    /// Whoever comes, goes and is launched in whatever order: every request that stays and is
    /// launched is answered with its own rows, and no row is run twice, but once more where hidden
    /// states were first asked for after it.
    #[test]
    fn every_row_is_run_once_and_reaches_everybody(
        requests in prop::collection::vec(
            (prop::collection::vec(0_u8..12, 1..6), prop::bool::weighted(0.2)), 1..20,
        ),
        events in prop::collection::vec((0_u8..8, any::<prop::sample::Index>()), 0..60),
    ) {
        let cache = cache();
        let mut runs = [0; 256];
        let mut coming = requests.into_iter();
        let mut asked: Vec<Asked> = Vec::new();
        let check = |asked: &mut Asked| match asked.answer.try_recv() {
            Ok(Ok(done)) => {
                let rows: Vec<u8> = done.outputs.iter().map(|output| output[0] as u8).collect();
                assert_eq!(rows, asked.rows);
                let wide = |output: &Output| output.len() == CLASSES + 2;
                assert!(!asked.gathering.needs_hidden || done.outputs.iter().all(wide));
                true
            }
            Ok(Err(error)) => panic!("{error}"),
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Closed) => panic!("dropped without an answer"),
        };
        for (event, index) in events {
            match event {
                0..=3 => {
                    if let Some((rows, needs_hidden)) = coming.next() {
                        asked.push(Asked::new(&cache, rows, needs_hidden));
                    }
                }
                4 if !asked.is_empty() => {
                    // Its client goes away.
                    let gone = asked.swap_remove(index.index(asked.len()));
                    cache.leave(&gone.gathering);
                }
                _ if !asked.is_empty() => {
                    let first = index.index(asked.len());
                    let mut batch: Vec<&mut Asked> = asked[first..].iter_mut().take(3).collect();
                    launch(&cache, &mut batch, &mut runs);
                    let (launched, mut index) = (first..first + 3, 0);
                    let mut wrong = false;
                    asked.retain_mut(|asked| {
                        let answered = check(asked);
                        wrong |= launched.contains(&index) && !answered;
                        index += 1;
                        !answered
                    });
                    prop_assert!(!wrong, "a request that was launched has no answer");
                }
                _ => {}
            }
        }
        let mut rest: Vec<&mut Asked> = asked.iter_mut().collect();
        launch(&cache, &mut rest, &mut runs);
        prop_assert!(asked.iter_mut().all(check));
        let most = if cache.keeps_hidden() { 2 } else { 1 };
        prop_assert!(runs.iter().all(|&runs| runs <= most), "{runs:?}");
        prop_assert!(cache.lock().is_empty(), "nobody waits any more");
    }
}

#[test]
fn what_is_not_finite_reaches_those_who_wait_and_nobody_else() {
    let cache = cache();
    let mut first = Asked::new(&cache, vec![1], false);
    let mut second = Asked::new(&cache, vec![1, 1], false);
    let output: Output = vec![1.0, f32::NAN, 1.0].into();
    cache.complete(&[(key(1), output)], &Trace::default());
    assert_eq!(first.answer.try_recv().unwrap().unwrap().cached, 1);
    assert_eq!(second.answer.try_recv().unwrap().unwrap().cached, 2);
    let mut third = Asked::new(&cache, vec![1], false);
    assert_eq!(third.queued, Some(vec![0]));
    assert!(third.answer.try_recv().is_err());
}

/// Every place for lookups is taken by one that does not come back.
#[tokio::test]
async fn a_disk_that_hangs_is_waited_for_once_and_by_nobody_beyond_a_quarter_of_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { disk_dir: Some(folder.path().to_owned()), ..Settings::default() };
    let layout = Layout::Logits { members: 1, classes: CLASSES, hidden: 2 };
    let cache = RowCache::open(&settings, &[1; 32], layout).unwrap();
    let turns = Turns::new(1, &ClientSettings::default(), &BTreeMap::new()).unwrap();
    let client = Arc::from("a");
    let held = Arc::new(Ledger::new(1, 1).take(&client, 1).unwrap());
    let stuck = turns.take(&client, 1).await;
    let took = async |deadline: Option<Duration>| {
        let asked = Asked::new(&cache, vec![1], false);
        let begun = Instant::now();
        let deadline = deadline.map(|left| clock::now() + left);
        cache.fetch(&asked.gathering, (&client, deadline, &held), &turns).await;
        begun.elapsed()
    };
    let short = took(Some(Duration::from_millis(400))).await;
    assert!(short >= Duration::from_millis(90), "{short:?}: it may only be busy");
    assert!(short < LIMIT - Duration::from_millis(200), "{short:?}");
    let first = took(None).await;
    assert!(first >= LIMIT, "{first:?}");
    let left_alone = took(None).await;
    assert!(left_alone < LIMIT - Duration::from_millis(200), "{left_alone:?}");
    drop(stuck);
    cache.close();
}
