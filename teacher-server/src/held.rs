//! The bytes that requests hold, from admission until the connection has taken the answer.
//!
//! The scheduler bounds what waits for the device. This bounds the rest too: what a client that
//! reads slowly leaves behind, over all its streams, and all clients together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{error::ServeError, metrics as names, quota::UnderWay};

/// When a refused client should try again: about the time in which a reader takes an answer.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How many bytes may be held, and how many are.
#[derive(Debug)]
pub(crate) struct Ledger {
    most: u64,
    most_per_client: u64,
    held: Mutex<Bytes>,
}

#[derive(Debug, Default)]
struct Bytes {
    all: u64,
    /// Clients that hold any.
    clients: HashMap<Arc<str>, u64>,
}

/// Bytes that one request holds. Dropped, they are free again.
#[derive(Debug)]
pub(crate) struct Held {
    ledger: Arc<Ledger>,
    client: Arc<str>,
    bytes: u64,
    /// Its place in the client's quota, for as long.
    _under_way: Option<UnderWay>,
}

impl Held {
    /// The same, of a request that a quota counts.
    pub(crate) fn with(mut self, under_way: UnderWay) -> Self {
        self._under_way = Some(under_way);
        self
    }
}

impl Ledger {
    pub(crate) fn new(most: u64, most_per_client: u64) -> Arc<Self> {
        Arc::new(Self { most, most_per_client, held: Mutex::default() })
    }

    /// Takes bytes for a request, or says whose bound is reached.
    pub(crate) fn take(
        self: &Arc<Self>,
        client: &Arc<str>,
        bytes: u64,
    ) -> Result<Held, ServeError> {
        if bytes > self.most_per_client {
            let expected =
                format!("at most the {} of limits.client_held_bytes", self.most_per_client);
            return Err(ServeError::invalid("rows", format!("{bytes} bytes in memory"), expected));
        }
        let mut held = self.lock();
        let own = held.clients.get(client).copied().unwrap_or(0);
        // The last eighth is for clients that hold nothing, so that a few cannot lock others out.
        let reserve = if own > 0 { self.most / 8 } else { 0 };
        for (reason, whose, found, most) in [
            ("client_held", "this client's", own, self.most_per_client),
            ("held", "all clients'", held.all, self.most - reserve),
        ] {
            if bytes > most.saturating_sub(found) {
                let what = format!(
                    "{whose} requests hold {found} of {most} bytes and {bytes} more do not fit; \
                     answers that are read make room"
                );
                return Err(ServeError::Exhausted { reason, what, retry_after: RETRY_AFTER });
            }
        }
        held.all += bytes;
        held.clients.insert(Arc::clone(client), own + bytes);
        metrics::gauge!(names::HELD_BYTES).set(held.all as f64);
        let ledger = Arc::clone(self);
        Ok(Held { ledger, client: Arc::clone(client), bytes, _under_way: None })
    }

    /// Bytes that all requests hold.
    pub(crate) fn held(&self) -> u64 {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Bytes> {
        // Sums that one statement each keeps right.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.ledger.lock();
        held.all = held.all.saturating_sub(self.bytes);
        metrics::gauge!(names::HELD_BYTES).set(held.all as f64);
        if let Some(own) = held.clients.get_mut(&self.client) {
            *own = own.saturating_sub(self.bytes);
            if *own == 0 {
                held.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(result: Result<Held, ServeError>) -> &'static str {
        match result.unwrap_err() {
            ServeError::Exhausted { reason, retry_after, .. } => {
                assert!(!retry_after.is_zero());
                reason
            }
            other => other.outcome(),
        }
    }

    #[test]
    fn a_client_and_all_of_them_are_bounded_and_what_is_dropped_is_free() {
        let ledger = Ledger::new(104, 60);
        let [a, b, c]: [Arc<str>; 3] = ["a", "b", "c"].map(Arc::from);
        let first = ledger.take(&a, 40).unwrap();
        assert_eq!(reason(ledger.take(&a, 21)), "client_held");
        let second = ledger.take(&a, 20).unwrap();
        assert_eq!(reason(ledger.take(&b, 45)), "held");
        let third = ledger.take(&b, 31).unwrap();
        assert_eq!(reason(ledger.take(&b, 1)), "held", "13 are kept for those that hold nothing");
        assert_eq!(reason(ledger.take(&c, 14)), "held");
        drop(ledger.take(&c, 13).unwrap());
        drop(first);
        assert_eq!(reason(ledger.take(&a, 41)), "client_held");
        let fourth = ledger.take(&a, 40).unwrap();
        drop((second, third, fourth));
        assert_eq!(ledger.lock().all, 0);
        assert!(ledger.lock().clients.is_empty(), "a client that holds nothing is forgotten");
    }

    #[test]
    fn what_can_never_fit_is_invalid_rather_than_refused_for_now() {
        let ledger = Ledger::new(100, 60);
        assert_eq!(reason(ledger.take(&Arc::from("a"), 61)), "invalid");
        drop(ledger.take(&Arc::from("a"), 60).unwrap());
    }
}
