//! What each client may ask for: requests and rows a second, and requests under way.
//!
//! The scheduler shares the device out between those who wait for it; this bounds what a client may
//! ask for even of an idle server, cached rows too. Rates are token buckets that hold one second's
//! worth and may go into debt for one request, so that a request larger than that is let through and
//! paid for afterwards.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{error::ServeError, settings::ClientSettings};

/// When a client with too many requests under way should try again: about the time of an answer.
const RETRY_IN_FLIGHT: Duration = Duration::from_millis(100);
/// The same of one for which there is no room to count.
const RETRY_CROWD: Duration = Duration::from_secs(1);
/// Clients that are remembered although their buckets are full and nothing of theirs is under way.
const IDLE_KEPT: usize = 4096;
/// Clients without a quota of their own that are remembered at all: more have to wait. A client's name
/// may be anything that it says.
const MOST: usize = 1 << 16;

/// The quotas of all clients.
#[derive(Debug)]
pub(crate) struct Quotas {
    /// Of clients that have none of their own.
    default: ClientSettings,
    own: BTreeMap<String, ClientSettings>,
    used: Mutex<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    all: HashMap<Arc<str>, Used>,
    /// How many were left when the idle ones were last looked for, and when that was.
    swept: usize,
    swept_at: Option<Instant>,
}

/// What a client has used.
#[derive(Debug)]
struct Used {
    /// What its buckets held at `at`; below 0 is debt.
    requests: f64,
    rows: f64,
    at: Instant,
    in_flight: u32,
}

/// A request under way. Dropped, it is not any more.
#[derive(Debug)]
pub(crate) struct UnderWay {
    quotas: Arc<Quotas>,
    client: Option<Arc<str>>,
}

impl Quotas {
    pub(crate) fn new(default: ClientSettings, own: BTreeMap<String, ClientSettings>) -> Arc<Self> {
        Arc::new(Self { default, own, used: Mutex::default() })
    }

    /// Whether the settings name a client.
    pub(crate) fn is_named(&self, client: &str) -> bool {
        self.own.contains_key(client)
    }

    pub(crate) fn of(&self, client: &str) -> &ClientSettings {
        self.own.get(client).unwrap_or(&self.default)
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        // Sums that one statement each keeps right.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request of so many rows, or tokens, from a client's quota, or says which is spent.
    pub(crate) fn take(
        self: &Arc<Self>,
        client: &Arc<str>,
        rows: u64,
        now: Instant,
    ) -> Result<UnderWay, ServeError> {
        let quota = self.of(client);
        if quota.is_unlimited() {
            return Ok(UnderWay { quotas: Arc::clone(self), client: None });
        }
        let mut clients = self.lock();
        let is_new = !self.is_named(client) && !clients.all.contains_key(client);
        let is_full = clients.all.len() >= MOST;
        // Idle ones are looked for when there are twice as many as were left the last time, or once a
        // second, so that it costs little for each request.
        let is_time = |at: Instant| now.saturating_duration_since(at) >= RETRY_CROWD;
        if clients.all.len() > IDLE_KEPT.max(2 * clients.swept)
            || (is_new && is_full && clients.swept_at.is_none_or(is_time))
        {
            clients.all.retain(|name, used| !used.is_idle(self.of(name), now));
            (clients.swept, clients.swept_at) = (clients.all.len(), Some(now));
        }
        if is_new && clients.all.len() >= MOST {
            let what = format!("{MOST} clients have used part of their quotas");
            return Err(spent("names", what, RETRY_CROWD));
        }
        let used = clients.all.entry(Arc::clone(client));
        let used = used.or_insert_with(|| Used::new(quota, now));
        used.refill(quota, now);
        if quota.max_in_flight > 0 && used.in_flight >= quota.max_in_flight {
            let what = format!("this client has {} requests under way, its quota", used.in_flight);
            return Err(spent("in_flight", what, RETRY_IN_FLIGHT));
        }
        for (reason, rate, left, of) in [
            ("requests", quota.requests_per_second, used.requests, "requests"),
            ("rows", quota.rows_per_second, used.rows, "rows or tokens"),
        ] {
            if rate > 0.0 && left <= 0.0 {
                let what = format!("this client's quota of {rate} {of} a second is spent");
                return Err(spent(reason, what, wait(left, rate)));
            }
        }
        for (rate, left, cost) in [
            (quota.requests_per_second, &mut used.requests, 1.0),
            (quota.rows_per_second, &mut used.rows, rows as f64),
        ] {
            // What is not limited is not counted.
            *left -= if rate > 0.0 { cost } else { 0.0 };
        }
        used.in_flight += 1;
        Ok(UnderWay { quotas: Arc::clone(self), client: Some(Arc::clone(client)) })
    }

    /// Gives back what a request has taken that was then told to come back: it cost nothing.
    pub(crate) fn give_back(&self, client: &Arc<str>, rows: u64) {
        let quota = self.of(client);
        if let Some(used) = self.lock().all.get_mut(client) {
            used.requests = (used.requests + 1.0).min(quota.requests_per_second);
            used.rows = (used.rows + rows as f64).min(quota.rows_per_second);
        }
    }
}

/// Until a bucket holds something again: 1 millisecond to 1 minute.
fn wait(left: f64, rate: f64) -> Duration {
    let seconds = (-left / rate).clamp(0.001, 60.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(60))
}

fn spent(reason: &'static str, what: String, retry_after: Duration) -> ServeError {
    ServeError::Exhausted { reason, what, retry_after }
}

impl Used {
    fn new(quota: &ClientSettings, at: Instant) -> Self {
        let (requests, rows) = (quota.requests_per_second, quota.rows_per_second);
        Self { requests, rows, at, in_flight: 0 }
    }

    /// Adds what the time since the last request is worth.
    fn refill(&mut self, quota: &ClientSettings, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let (requests, rows) = (quota.requests_per_second, quota.rows_per_second);
        self.requests = (self.requests + requests * seconds).min(requests);
        self.rows = (self.rows + rows * seconds).min(rows);
    }

    /// Whether it is as good as forgotten.
    fn is_idle(&mut self, quota: &ClientSettings, now: Instant) -> bool {
        self.refill(quota, now);
        self.in_flight == 0
            && self.requests >= quota.requests_per_second
            && self.rows >= quota.rows_per_second
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(client) = &self.client
            && let Some(used) = self.quotas.lock().all.get_mut(client)
        {
            used.in_flight = used.in_flight.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(default: ClientSettings, own: &[(&str, ClientSettings)]) -> Arc<Quotas> {
        let own = own.iter().map(|(name, quota)| ((*name).to_owned(), quota.clone())).collect();
        Quotas::new(default, own)
    }

    fn limits(requests_per_second: f64, rows_per_second: f64, in_flight: u32) -> ClientSettings {
        let max_in_flight = in_flight;
        ClientSettings { requests_per_second, rows_per_second, max_in_flight, ..Default::default() }
    }

    /// Which quota is spent, and for how long.
    fn refusal(result: Result<UnderWay, ServeError>) -> (&'static str, Duration) {
        match result.unwrap_err() {
            ServeError::Exhausted { reason, retry_after, .. } => (reason, retry_after),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_rate_is_kept_over_time_and_a_large_request_is_paid_for_afterwards() {
        let quotas = quotas(limits(0.0, 100.0, 0), &[]);
        let (client, start) = (Arc::from("a"), Instant::now());
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        quotas.take(&client, 300, at(0.0)).unwrap();
        let (reason, after) = refusal(quotas.take(&client, 1, at(0.0)));
        assert_eq!((reason, after), ("rows", Duration::from_secs(2)));
        assert_eq!(refusal(quotas.take(&client, 1, at(1.9))).0, "rows");
        quotas.take(&client, 1, at(2.1)).unwrap();
        // Over a minute, a hundred a second and the first second's worth.
        let mut rows = 0;
        for tick in 0..6000 {
            if quotas.take(&client, 7, at(10.0 + f64::from(tick) / 100.0)).is_ok() {
                rows += 7;
            }
        }
        assert!((6000..=6110).contains(&rows), "{rows}");
    }

    #[test]
    fn requests_and_those_under_way_are_counted_for_each_client() {
        let quotas = quotas(limits(2.0, 0.0, 0), &[("b", limits(0.0, 0.0, 1))]);
        let (a, b, start) = (Arc::from("a"), Arc::from("b"), Instant::now());
        for _ in 0..2 {
            quotas.take(&a, 1000, start).unwrap();
        }
        assert_eq!(refusal(quotas.take(&a, 1, start)).0, "requests");
        let held = quotas.take(&b, 1000, start).unwrap();
        assert_eq!(refusal(quotas.take(&b, 1, start)), ("in_flight", RETRY_IN_FLIGHT));
        drop(held);
        quotas.take(&b, 1, start).unwrap();
    }

    #[test]
    fn idle_clients_are_forgotten_and_debtors_are_not() {
        let quotas = quotas(limits(1.0, 0.0, 0), &[]);
        let start = Instant::now();
        for number in 0..2 * IDLE_KEPT {
            quotas.take(&Arc::from(number.to_string()), 1, start).unwrap();
        }
        assert_eq!(quotas.lock().all.len(), 2 * IDLE_KEPT, "none of them is idle yet");
        let later = start + Duration::from_secs(10);
        let debtor = Arc::from("debtor");
        quotas.take(&debtor, 1, later).unwrap();
        for number in 0..=IDLE_KEPT {
            quotas.take(&Arc::from(format!("another {number}")), 1, later).unwrap();
        }
        let left = quotas.lock().all.len();
        assert!(left <= IDLE_KEPT + 3, "{left}");
        assert_eq!(refusal(quotas.take(&debtor, 1, later)).0, "requests");
    }

    #[test]
    fn made_up_names_take_bounded_memory_and_do_not_keep_the_known_out() {
        let quotas = quotas(limits(0.0, 1.0, 0), &[("known", limits(0.0, 1e6, 0))]);
        let start = Instant::now();
        for number in 0..MOST {
            quotas.take(&Arc::from(number.to_string()), 1024, start).unwrap();
        }
        let later = start + Duration::from_secs(60);
        assert_eq!(refusal(quotas.take(&Arc::from("one more"), 1, later)), ("names", RETRY_CROWD));
        assert_eq!(quotas.lock().all.len(), MOST);
        quotas.take(&Arc::from("known"), 1024, later).unwrap();
        // Their debts are paid.
        let later = start + Duration::from_secs(1100);
        quotas.take(&Arc::from("one more"), 1, later).unwrap();
    }

    #[test]
    fn what_is_given_back_can_be_used_and_is_no_more_than_a_second_of_it() {
        let quotas = quotas(limits(2.0, 100.0, 0), &[]);
        let (client, start) = (Arc::from("a"), Instant::now());
        for _ in 0..10 {
            quotas.take(&client, 150, start).unwrap();
            quotas.give_back(&client, 150);
        }
        quotas.give_back(&client, 1000);
        quotas.take(&client, 150, start).unwrap();
        assert_eq!(refusal(quotas.take(&client, 1, start)), ("rows", Duration::from_millis(500)));
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let quotas = quotas(ClientSettings::default(), &[]);
        drop(quotas.take(&Arc::from("a"), u64::MAX, Instant::now()).unwrap());
        assert!(quotas.lock().all.is_empty());
    }
}
