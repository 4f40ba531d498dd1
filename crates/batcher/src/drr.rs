//! Deficit round robin: whose turn it is, and what credit each client has.
//!
//! Rounds are numbered. A client with queued work has one place, in the round that it has its next
//! turn in; a turn grants credit once. A turn that the batch's budget cuts short keeps its place,
//! and no later round starts before it has ended.
//!
//! A round can last many batches: where every client holds a full batch, each of their turns is one.
//! So a client whose queue was empty does not wait for the round to end. It gets a head start, a
//! grant before everyone else's turn, as a new flow does in FQ-CoDel (RFC 8290, section 4.2). Two
//! limits keep the others' shares: a client that had a grant in the round and left is given none
//! when it comes back within the round, and the head starts of a round come to one batch in all.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// Names a client while it has work queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(pub(crate) u64);

/// Who goes first within a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Those with a head start.
    Newcomers,
    /// Everyone else.
    Others,
}

/// Round, lane, then place within that.
pub(crate) type Place = (u64, Lane, u64);

/// A client's side of the round robin. Made when the client's queue fills, dropped with all credit
/// when it empties.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) weight: u32,
    /// Cost that the client may launch before its next grant.
    pub(crate) credit: u64,
    /// Whether the turn at `place` has had its grant.
    granted: bool,
    place: Place,
    /// What the turn at `place` is granted if it is in the newcomers' lane.
    head_start: u64,
    /// The latest round that it had a grant in; 0: none yet.
    last_turn: u64,
    /// Key in [`Ring::passed`].
    passed: Option<u64>,
}

impl Account {
    /// Rounds until the credit covers `cost`.
    pub(crate) fn rounds_until(&self, cost: u64, quantum: u64) -> u64 {
        cost.saturating_sub(self.credit).div_ceil(quantum * u64::from(self.weight))
    }

    /// Adds the grants of `rounds` rounds, up to the cap.
    pub(crate) fn grant(&mut self, rounds: u64, quantum: u64, cap: u64) {
        let weight = u64::from(self.weight);
        let gained = rounds.saturating_mul(quantum * weight);
        self.credit = self.credit.saturating_add(gained).min(cap.saturating_mul(weight));
    }

    /// Adds the grant of the current turn, unless it was cut short and had it before.
    pub(crate) fn begin_turn(&mut self, quantum: u64, cap: u64) {
        if self.granted {
            return;
        }
        self.granted = true;
        self.last_turn = self.place.0;
        match self.place.1 {
            Lane::Newcomers => self.credit += self.head_start,
            Lane::Others => self.grant(1, quantum, cap),
        }
    }

    /// Credit that it will be given ahead of everyone's turn.
    pub(crate) fn head_start(&self) -> Option<u64> {
        (self.place.1 == Lane::Newcomers && !self.granted).then_some(self.head_start)
    }

    /// Clears the mark of a client that [`Ring::next_leader`] named.
    pub(crate) fn lead(&mut self) {
        self.passed = None;
    }
}

/// The clients with work queued, in order of their turns.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// The latest round in which somebody had a turn.
    round: u64,
    /// Places and keys given out; each is used once.
    issued: u64,
    turns: BTreeMap<Place, ClientId>,
    /// Clients that a batch passed over for their lengths, first passed over first.
    passed: BTreeMap<u64, ClientId>,
    /// Clients that had a grant in `round` and have left since. At most those that were there when
    /// it began, and those with a head start.
    left: HashSet<Arc<str>>,
    /// The head starts given out in a round: which, and their sum.
    head_starts: (u64, u64),
}

impl Ring {
    /// Takes in a client whose queue was empty. Its turns are from the next round on; before them it
    /// has a head start of `quantum * weight` in the round that is under way or, if none is, comes
    /// next, unless it had a grant in that round before. A round's head starts are at most `budget`.
    pub(crate) fn join(
        &mut self,
        id: ClientId,
        name: &str,
        weight: u32,
        quantum: u64,
        budget: u64,
    ) -> Account {
        let next = self.round + 1;
        let round = self.turns.first_key_value().map_or(next, |(&(round, ..), _)| round);
        if self.head_starts.0 != round {
            self.head_starts = (round, 0);
        }
        let had_its_grant = round == self.round && self.left.contains(name);
        let head_start = if had_its_grant {
            0
        } else {
            (quantum * u64::from(weight)).min(budget - self.head_starts.1)
        };
        self.head_starts.1 += head_start;
        let place = if head_start > 0 {
            (round, Lane::Newcomers, self.issue())
        } else {
            (next, Lane::Others, self.issue())
        };
        self.turns.insert(place, id);
        Account { weight, credit: 0, granted: false, place, head_start, last_turn: 0, passed: None }
    }

    pub(crate) fn leave(&mut self, name: &Arc<str>, account: &Account) {
        self.turns.remove(&account.place);
        if let Some(key) = account.passed {
            self.passed.remove(&key);
        }
        if account.last_turn == self.round {
            self.left.insert(name.clone());
        }
        if let Some(unused) = account.head_start().filter(|_| account.place.0 == self.head_starts.0)
        {
            // Not spent: it is there for the next newcomer.
            self.head_starts.1 -= unused;
        }
        if self.turns.is_empty() {
            // Nobody is left to be overtaken.
            self.left.clear();
        }
    }

    /// Begins, or goes on with, the earliest round in which a turn is left.
    pub(crate) fn begin_round(&mut self) -> Option<u64> {
        let (&(round, ..), _) = self.turns.first_key_value()?;
        if round != self.round {
            self.left.clear();
        }
        self.round = round;
        Some(round)
    }

    /// The first turn of `round` after the one at `after`, or of all.
    pub(crate) fn turn_after(&self, round: u64, after: Option<Place>) -> Option<(Place, ClientId)> {
        let (&place, &id) =
            self.turns.range((after.map_or(Unbounded, Excluded), Unbounded)).next()?;
        (place.0 == round).then_some((place, id))
    }

    /// Ends a turn: the client's next is in the following round.
    pub(crate) fn end_turn(&mut self, id: ClientId, account: &mut Account) {
        self.turns.remove(&account.place);
        account.place = (account.place.0 + 1, Lane::Others, self.issue());
        account.granted = false;
        self.turns.insert(account.place, id);
    }

    /// Puts a client among those that shall lead a later batch, unless it is there.
    pub(crate) fn pass_over(&mut self, id: ClientId, account: &mut Account) {
        if account.passed.is_none() {
            let key = self.issue();
            account.passed = Some(key);
            self.passed.insert(key, id);
        }
    }

    /// The client that was passed over first, and since when; it is not among them any more, and its
    /// account's mark must go with [`Account::lead`].
    pub(crate) fn next_leader(&mut self) -> Option<(u64, ClientId)> {
        self.passed.pop_first()
    }

    /// Puts a client back that [`Ring::next_leader`] named, as if it had not.
    pub(crate) fn stays_passed(&mut self, since: u64, id: ClientId, account: &mut Account) {
        account.passed = Some(since);
        self.passed.insert(since, id);
    }

    fn issue(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTUM: u64 = 10;
    const BUDGET: u64 = 100;

    fn join(ring: &mut Ring, id: u64, name: &str, weight: u32) -> Account {
        ring.join(ClientId(id), name, weight, QUANTUM, BUDGET)
    }

    /// A ring whose first round is under way: `a` had its turn, `b` has not.
    fn within_a_round() -> (Ring, Account, Account) {
        let mut ring = Ring::default();
        let mut first = join(&mut ring, 1, "a", 1);
        let second = join(&mut ring, 2, "b", 1);
        assert_eq!(ring.begin_round(), Some(1));
        first.begin_turn(QUANTUM, BUDGET);
        ring.end_turn(ClientId(1), &mut first);
        (ring, first, second)
    }

    #[test]
    fn a_newcomer_goes_ahead_of_the_round_that_is_under_way() {
        let (mut ring, _, second) = within_a_round();
        let mut newcomer = join(&mut ring, 3, "c", 2);
        assert_eq!(newcomer.place.0, second.place.0);
        assert_eq!(newcomer.head_start(), Some(2 * QUANTUM));
        newcomer.begin_turn(QUANTUM, BUDGET);
        assert_eq!((newcomer.credit, newcomer.head_start()), (2 * QUANTUM, None));
        ring.end_turn(ClientId(3), &mut newcomer);
        newcomer.begin_turn(QUANTUM, BUDGET);
        assert_eq!(newcomer.credit, 4 * QUANTUM, "from then on as everyone");
    }

    #[test]
    fn a_client_that_leaves_and_comes_back_waits_for_the_next_round() {
        let (mut ring, first, second) = within_a_round();
        ring.leave(&"a".into(), &first);
        let again = join(&mut ring, 3, "a", 1);
        assert_eq!((again.head_start(), again.place.0, again.credit), (None, 2, 0));
        assert_eq!(ring.turn_after(1, None), Some((second.place, ClientId(2))));
        assert_eq!(ring.turn_after(1, Some(second.place)), None);

        // It is forgotten when the round is over.
        ring.leave(&"a".into(), &again);
        ring.leave(&"b".into(), &second);
        let other = join(&mut ring, 4, "c", 1);
        assert_eq!(join(&mut ring, 5, "a", 1).place.0, other.place.0);
    }

    #[test]
    fn a_head_start_that_was_not_used_is_there_for_the_next() {
        let mut ring = Ring::default();
        join(&mut ring, 1, "steady", 1);
        ring.begin_round();
        for id in 2..1000 {
            let name = id.to_string();
            let account = join(&mut ring, id, &name, 1);
            assert_eq!(account.head_start(), Some(QUANTUM), "{name}");
            ring.leave(&name.as_str().into(), &account);
        }
    }

    /// Made-up names cannot keep the round from its end.
    #[test]
    fn the_head_starts_of_a_round_come_to_one_batch() {
        let (mut ring, ..) = within_a_round();
        let head_starts: Vec<_> =
            (3..20).map(|i| join(&mut ring, i, &i.to_string(), 3).head_start()).collect();
        assert_eq!(head_starts[..3], [Some(30), Some(30), Some(20)], "`a` and `b` had 10 each");
        assert!(head_starts[3..].iter().all(Option::is_none));
    }

    #[test]
    fn a_turn_that_was_cut_short_is_not_granted_twice() {
        let mut account = join(&mut Ring::default(), 1, "a", 3);
        account.begin_turn(QUANTUM, 1000);
        account.begin_turn(QUANTUM, 1000);
        assert_eq!(account.credit, 30);
    }

    #[test]
    fn credit_is_capped_by_weight() {
        let mut account = join(&mut Ring::default(), 1, "a", 2);
        account.grant(u64::MAX, 10, 100);
        assert_eq!(account.credit, 200);
        assert_eq!(account.rounds_until(240, 10), 2);
        assert_eq!(account.rounds_until(200, 10), 0);
    }
}
