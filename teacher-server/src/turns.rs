//! A few at a time, in fair turns: for work beside the device.
//!
//! Encoding large answers and looking rows up on the disk take time that the device's queue does not
//! know of. Whoever waits for a turn is served as there: by priority, and within it by deficit round robin
//! over clients, so that one client's work does not keep another's waiting.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use stillhouse_batcher::{Config, ConfigError, Prioritised, Request, Ticket};
use stillhouse_runtime::clock;
use tokio::sync::oneshot;

use crate::{scheduler::give_shares, settings::ClientSettings};

/// Work that costs more counts as this. A client is given a 64th of it in each round, before the others are
/// given theirs.
const MOST: u64 = 1 << 12;

/// Places, and who waits for one.
pub(crate) struct Turns {
    state: Mutex<State>,
    epoch: Instant,
}

struct State {
    waiting: Prioritised<oneshot::Sender<Turn>>,
    free: usize,
}

/// A place. Dropped, it is the next one's.
pub(crate) struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// `places` at a time. What waits is bounded by what clients may hold in memory.
    pub(crate) fn new(
        places: usize,
        default: &ClientSettings,
        own: &BTreeMap<String, ClientSettings>,
    ) -> Result<Arc<Self>, ConfigError> {
        let config = Config {
            max_batch_cost: MOST,
            max_queue_cost: 1 << 40,
            max_client_cost: 1 << 40,
            max_clients: 1 << 20,
            age_guard: Duration::MAX,
            default_weight: default.weight,
            ..Config::default()
        };
        let mut waiting = Prioritised::new(&config, default.priority.into())?;
        give_shares(&mut waiting, own);
        let state = Mutex::new(State { waiting, free: places });
        Ok(Arc::new(Self { state, epoch: clock::now() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Places are counted in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn; none only where far more wait than memory has room for.
    pub(crate) async fn take(self: &Arc<Self>, client: &Arc<str>, cost: u64) -> Option<Turn> {
        let (give, given) = oneshot::channel();
        let request = Request::new(Arc::clone(client), cost.clamp(1, MOST), give);
        let ticket = {
            let mut state = self.lock();
            let ticket = state.waiting.admit(self.now(), request).ok()?;
            self.give(&mut state);
            ticket
        };
        let _waits = Waits { turns: self, ticket };
        given.await.ok()
    }

    fn now(&self) -> Duration {
        clock::now().saturating_duration_since(self.epoch)
    }

    /// Gives free places to those who wait.
    fn give(self: &Arc<Self>, state: &mut State) {
        while state.free > 0
            && let Some(next) = state.waiting.next(self.now())
        {
            match next.payload.send(Turn(Some(Arc::clone(self)))) {
                Ok(()) => state.free -= 1,
                // It does not wait any more. The place was not taken, and must not come back.
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            let mut state = turns.lock();
            state.free += 1;
            turns.give(&mut state);
        }
    }
}

/// Somebody who waits, until dropped.
struct Waits<'a> {
    turns: &'a Turns,
    ticket: Ticket,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        // Nothing if it has had its turn.
        let waited = self.turns.lock().waiting.cancel(self.ticket);
        drop(waited);
    }
}

/// Says, once dropped, that who asked does not wait any more.
#[derive(Default)]
pub(crate) struct Leaves(pub(crate) Arc<AtomicBool>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    fn turns(places: usize) -> Arc<Turns> {
        let low = ClientSettings {
            priority: crate::settings::Priority::Low,
            ..ClientSettings::default()
        };
        let own = BTreeMap::from([("low".to_owned(), low)]);
        Turns::new(places, &ClientSettings::default(), &own).unwrap()
    }

    #[tokio::test]
    async fn a_client_that_asks_for_much_keeps_no_other_waiting() {
        let turns = turns(1);
        let (many, one, low) = (Arc::from("many"), Arc::from("one"), Arc::from("low"));
        let first = turns.take(&many, 1).await.unwrap();
        let own = |client| Box::pin(turns.take(client, MOST / 64));
        let mut waiting: Vec<_> = (0..50).map(|_| own(&many)).collect();
        waiting.push(own(&low));
        waiting.push(own(&one));
        assert!(waiting.iter_mut().all(|take| take.now_or_never().is_none()));
        drop(first);
        // Who comes next, in order.
        let mut order = Vec::new();
        while order.len() < waiting.len() {
            let ready = waiting.iter_mut().enumerate().filter(|(at, _)| !order.contains(at));
            let ready: Vec<_> =
                ready.filter_map(|(at, take)| Some((at, take.now_or_never()?))).collect();
            assert_eq!(ready.len(), 1, "one at a time");
            order.push(ready[0].0);
        }
        assert!(order[..2].contains(&51), "{order:?}");
        assert_eq!(order.iter().position(|&at| at == 50), Some(16), "{order:?}");
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_no_place_and_loses_none() {
        let turns = turns(2);
        let client = Arc::from("a");
        let held = [turns.take(&client, 1).await, turns.take(&client, 2 * MOST).await];
        {
            let mut gone = pin!(turns.take(&client, 1));
            assert!(gone.as_mut().now_or_never().is_none());
        }
        let mut stays = pin!(turns.take(&client, 1));
        assert!(stays.as_mut().now_or_never().is_none());
        // Given, and dropped before it was looked at.
        let mut looked_away = Box::pin(turns.take(&client, 1));
        assert!(looked_away.as_mut().now_or_never().is_none());
        drop(held);
        drop(looked_away);
        let stays = stays.now_or_never().unwrap();
        assert_eq!(turns.lock().free, 1);
        drop(stays);
        let state = turns.lock();
        assert_eq!((state.free, state.waiting.clients()), (2, 0));
    }
}
