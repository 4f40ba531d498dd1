//! Clients of three priorities, each with a queue of its own.
//!
//! A batch takes from the highest first, and from the lower ones what room that leaves. Within a
//! priority everything is as the [crate]'s page says. A lower one that waits is not starved: after
//! [`PASSED_OVER`] batches without it, or without room for a request of its that is due and fits in a whole
//! batch only, it goes first in one. A target latency counts what waits in the
//! higher queues, too; where a lower one has just gone first, it may be missed by a batch.

use std::collections::HashMap;
use std::sync::Arc;

use crate::forming::Room;
use crate::{
    Batch, Batcher, ClientStats, Config, ConfigError, Expired, Formed, Forming, LaunchReason,
    Launched, Refusal, Request, Ticket, Time, WeightError,
};

/// Batches of others' work after which a priority that waits goes first in one.
pub const PASSED_OVER: u64 = 16;

/// Who goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Before everyone else.
    High,
    /// In between.
    #[default]
    Normal,
    /// In what the others leave.
    Low,
}

const LEVELS: usize = 3;

/// A [`Batcher`] for each priority, as one.
#[derive(Debug)]
pub struct Prioritised<T> {
    /// By priority, the highest first.
    levels: [Batcher<T>; LEVELS],
    /// Batches that each, or one that goes first in it, has waited through.
    passed: [u64; LEVELS],
    default: Priority,
    /// Priorities of clients that do not have the default.
    own: HashMap<Arc<str>, Priority>,
}

impl<T> Prioritised<T> {
    /// Empty queues, each with the bounds of `config`; `default` is the priority of clients that are
    /// given none.
    ///
    /// # Errors
    ///
    /// A field of `config` is out of range.
    pub fn new(config: &Config, default: Priority) -> Result<Self, ConfigError> {
        let level = |level: usize| Batcher::numbered(config.clone(), level as u64, LEVELS as u64);
        Ok(Self {
            levels: [level(0)?, level(1)?, level(2)?],
            passed: [0; LEVELS],
            default,
            own: HashMap::new(),
        })
    }

    /// Gives a client a priority, from its next request on. Clients in the table are no more than the
    /// caller gives.
    pub fn set_priority(&mut self, client: &str, priority: Priority) {
        if priority == self.default {
            self.own.remove(client);
        } else {
            self.own.insert(client.into(), priority);
        }
    }

    /// As [`Batcher::set_weight`].
    ///
    /// # Errors
    ///
    /// As [`Batcher::set_weight`].
    pub fn set_weight(&mut self, client: &str, weight: u32) -> Result<(), WeightError> {
        self.levels.iter_mut().try_for_each(|level| level.set_weight(client, weight))
    }

    /// As [`Batcher::admit`], to the queue of the client's priority.
    ///
    /// # Errors
    ///
    /// Why it was not queued, with its payload.
    pub fn admit(&mut self, now: Time, request: Request<T>) -> Result<Ticket, (Refusal, T)> {
        let priority = self.own.get(&request.client).copied().unwrap_or(self.default);
        let (higher, own) = self.levels.split_at_mut(priority as usize);
        if own[0].target.is_some() {
            own[0].ahead = higher.iter().map(Batcher::queued_cost).sum();
        }
        own[0].admit(now, request)
    }

    /// As [`Batcher::cancel`].
    pub fn cancel(&mut self, ticket: Ticket) -> Option<T> {
        self.levels[(ticket.0 % LEVELS as u64) as usize].cancel(ticket)
    }

    /// As [`Batcher::expire`].
    pub fn expire(&mut self, now: Time) -> Vec<Expired<T>> {
        self.levels.iter_mut().flat_map(|level| level.expire(now)).collect()
    }

    /// As [`Batcher::form`]. A batch is due when one of the queues says so.
    pub fn form(&mut self, now: Time) -> Formed<T> {
        let expired = self.expire(now);
        let due = self.levels.iter().filter_map(|level| level.due_at(now)).min_by_key(|due| due.0);
        // Together they may fill a batch that none of them does.
        let full = self.queued_cost() >= self.levels[0].room();
        let due = due.map(|due| if full { (now, LaunchReason::Full) } else { due });
        let decision = match due {
            None => Forming::Idle,
            Some((at, _)) if at > now => Forming::Wait(at),
            Some((_, reason)) => Forming::Launch(self.fill(now, reason, u64::MAX)),
        };
        Formed { decision, expired }
    }

    fn fill(&mut self, now: Time, reason: LaunchReason, most: u64) -> Batch<T> {
        let starved = (0..LEVELS).find(|&level| self.passed[level] >= PASSED_OVER);
        let order = starved.into_iter().chain((0..LEVELS).filter(|&level| Some(level) != starved));
        let mut batch = Batch { items: Vec::new(), cost: 0, reason };
        let mut rode = [false; LEVELS];
        for level in order {
            let room = self.levels[level].room().min(most).saturating_sub(batch.cost);
            // Where nothing rides yet, a request larger than the room rides alone.
            if room == 0 && !batch.items.is_empty() {
                continue;
            }
            let room = Room { cost: room, is_rest: !batch.items.is_empty() };
            let filled = self.levels[level].fill_within(now, room);
            rode[level] = !filled.items.is_empty() && !filled.held_up;
            batch.cost += filled.cost;
            batch.items.extend(filled.items);
        }
        for (level, rode) in rode.into_iter().enumerate() {
            let waits = !rode && !self.levels[level].is_empty();
            self.passed[level] = if waits { self.passed[level] + 1 } else { 0 };
        }
        batch
    }

    /// The one request that goes first now, for work that is not done in batches.
    pub fn next(&mut self, now: Time) -> Option<Launched<T>> {
        // The first may be larger than the room, which it is then alone in.
        let batch = self.fill(now, LaunchReason::Full, 1);
        batch.items.into_iter().next()
    }

    /// As [`Batcher::completed`].
    pub fn completed(&mut self, cost: u64, ran: u64, took: Time) {
        self.levels.iter_mut().for_each(|level| level.completed(cost, ran, took));
    }

    /// As [`Batcher::drain`].
    pub fn drain(&mut self) {
        self.levels.iter_mut().for_each(Batcher::drain);
    }

    /// As [`Batcher::queued_cost`].
    pub fn queued_cost(&self) -> u64 {
        self.levels.iter().map(Batcher::queued_cost).sum()
    }

    /// As [`Batcher::clients`].
    pub fn clients(&self) -> usize {
        self.levels.iter().map(Batcher::clients).sum()
    }

    /// As [`Batcher::is_empty`].
    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(Batcher::is_empty)
    }

    /// As [`Batcher::client_stats`].
    pub fn client_stats(&self) -> impl Iterator<Item = ClientStats> + '_ {
        self.levels.iter().flat_map(Batcher::client_stats)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; LEVELS] = ["high", "normal", "low"];

    fn prioritised(max_batch_cost: u64) -> Prioritised<usize> {
        let config = Config {
            max_batch_cost,
            max_queue_cost: 1 << 20,
            max_client_cost: 1 << 20,
            age_guard: Time::MAX,
            ..Config::default()
        };
        let mut all = Prioritised::new(&config, Priority::Normal).unwrap();
        all.set_priority("high", Priority::High);
        all.set_priority("low", Priority::Low);
        all
    }

    fn launch(all: &mut Prioritised<usize>) -> Vec<usize> {
        match all.form(Time::ZERO).decision {
            Forming::Launch(batch) => {
                assert_eq!(batch.cost, batch.items.iter().map(|item| item.cost).sum::<u64>());
                batch.items.into_iter().map(|item| item.payload).collect()
            }
            _ => panic!("work is queued"),
        }
    }

    fn admit(all: &mut Prioritised<usize>, level: usize, cost: u64) -> Ticket {
        all.admit(Time::ZERO, Request::new(NAMES[level], cost, level)).unwrap()
    }

    #[test]
    fn the_highest_goes_first_and_the_others_fill_up() {
        let mut all = prioritised(10);
        for level in [2, 1, 0, 2, 1] {
            admit(&mut all, level, 3);
        }
        assert_eq!(launch(&mut all), [0, 1, 1]);
        assert_eq!(launch(&mut all), [2, 2]);
        assert!(all.is_empty());
    }

    #[test]
    fn the_low_are_not_starved_and_get_no_more_than_that() {
        let mut all = prioritised(10);
        let mut rode = 0;
        for _ in 0..170 {
            for _ in 0..2 {
                admit(&mut all, 0, 10);
                admit(&mut all, 2, 10);
            }
            rode += launch(&mut all).iter().filter(|&&level| level == 2).count();
        }
        assert_eq!(rode, 10, "one batch in 17");
    }

    /// One that fits in a whole batch only holds up neither its priority nor, for ever, itself.
    #[test]
    fn what_does_not_fit_beside_a_higher_priority_leaves_the_room_to_others() {
        let mut all = prioritised(64);
        let (mut alone, mut batches) = (Vec::new(), Vec::new());
        for batch in 0..200 {
            admit(&mut all, 0, 1);
            for _ in 0..8 {
                drop(all.admit(Time::ZERO, Request::new("many", 8, 3)));
            }
            drop(all.admit(Time::ZERO, Request::new("large", 64, 4)));
            let rode = launch(&mut all);
            if rode.contains(&4) {
                alone.push(batch);
            }
            batches.push(rode.len());
        }
        // "large" has credit for its first after some batches, then waits for its turn.
        assert!(alone.len() >= 200 / 20, "{alone:?}");
        let gaps = alone.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.clone().all(|gap| gap <= 2 * PASSED_OVER as usize), "{alone:?}");
        // All but those: what waits of the high, and seven that fit beside it.
        let full = batches.iter().filter(|&&rode| rode >= 8).count();
        assert_eq!(full, 200 - alone.len(), "{batches:?}");
    }

    /// As many as there are, they take turns in the batches that their priority goes first in.
    #[test]
    fn those_that_only_fit_in_a_whole_batch_share_alike() {
        for (clients, weight, with_small) in
            [(3, 1, true), (5, 1, true), (3, 2, false), (5, 1, false), (8, 2, false)]
        {
            let mut all = prioritised(64);
            let names: Vec<String> = (0..clients).map(|client| format!("large-{client}")).collect();
            names.iter().for_each(|name| all.set_weight(name, weight).unwrap());
            let mut rode = vec![0; clients];
            for _ in 0..3000 {
                admit(&mut all, 0, 1);
                for (client, name) in names.iter().enumerate() {
                    drop(all.admit(Time::ZERO, Request::new(name.as_str(), 64, 10 + client)));
                }
                if with_small {
                    drop(all.admit(Time::ZERO, Request::new("small", 8, 3)));
                }
                for of in launch(&mut all).into_iter().filter(|&of| of >= 10) {
                    rode[of - 10] += 1;
                }
            }
            let (least, most) = (rode.iter().min().unwrap(), rode.iter().max().unwrap());
            assert!(*least > 0 && most - least <= 2 + most / 10, "{clients} of {weight}: {rode:?}");
        }
    }

    #[test]
    fn one_at_a_time_goes_by_priority_and_share() {
        let mut all = prioritised(10);
        all.set_weight("b", 2).unwrap();
        for (client, cost, number) in
            [("a", 10, 1), ("a", 10, 2), ("b", 10, 3), ("b", 10, 4), ("b", 10, 5), ("low", 1, 6)]
        {
            all.admit(Time::ZERO, Request::new(client, cost, number)).unwrap();
        }
        admit(&mut all, 0, 7);
        let mut order = Vec::new();
        while let Some(next) = all.next(Time::ZERO) {
            order.push(next.payload);
        }
        assert_eq!((order[0], order[6]), (0, 6), "{order:?}");
        let last_of_a = order.iter().position(|&number| number == 2);
        assert!(last_of_a > Some(3), "half of what b has had: {order:?}");
        assert_eq!(order.len(), 7);
    }

    #[test]
    fn a_ticket_is_of_its_own_queue() {
        let mut all = prioritised(10);
        let tickets: Vec<Ticket> = (0..LEVELS).map(|level| admit(&mut all, level, 1)).collect();
        assert_eq!(all.cancel(tickets[1]), Some(1));
        assert_eq!(all.cancel(tickets[1]), None);
        assert_eq!(launch(&mut all), [0, 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Every admitted request is launched, expires or is cancelled once; a batch is within its
        /// budget; and of rows, which fit anywhere, none rides before all that are above it, but in
        /// the batches that the starved go first in.
        #[test]
        fn everything_has_one_outcome_and_priorities_hold(
            steps in prop::collection::vec((0usize..LEVELS, 1u64..4, 0u8..6), 1..200),
        ) {
            let mut all = prioritised(8);
            let (mut open, mut launched, mut clock) = (Vec::new(), 0, Time::ZERO);
            let (mut admitted, mut gone) = (0, 0);
            for (level, rows, what) in steps {
                clock += Time::from_millis(1);
                for _ in 0..rows {
                    let deadline = (what == 5).then(|| clock + Time::from_millis(2));
                    let request = Request { deadline, ..Request::new(NAMES[level], 1, level) };
                    open.push(all.admit(clock, request).unwrap());
                    admitted += 1;
                }
                if what == 0 {
                    gone += usize::from(all.cancel(open[open.len() / 2]).is_some());
                }
                if what > 2 {
                    let starved = all.passed.iter().any(|&passed| passed >= PASSED_OVER);
                    let formed = all.form(clock);
                    gone += formed.expired.len();
                    if let Forming::Launch(batch) = formed.decision {
                        prop_assert!(batch.cost <= 8);
                        launched += batch.items.len();
                        let lowest = batch.items.iter().map(|item| item.payload).max().unwrap();
                        let above = all.levels[..lowest].iter().all(Batcher::is_empty);
                        prop_assert!(above || starved);
                    }
                }
            }
            loop {
                clock += Time::from_millis(1);
                let formed = all.form(clock);
                gone += formed.expired.len();
                match formed.decision {
                    Forming::Launch(batch) => launched += batch.items.len(),
                    _ => break,
                }
            }
            prop_assert!(all.is_empty());
            prop_assert_eq!(launched + gone, admitted);
        }
    }
}
