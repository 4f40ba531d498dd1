//! Deficit round robin: whose turn it is, and what credit each client has.
//!
//! Rounds are numbered. A client with queued work has one place, in the round that it has its next
//! turn in; a turn grants credit once. A turn that the batch's budget cuts short keeps its place,
//! and no later round starts before it has ended.

use std::collections::BTreeMap;

/// Names a client while it has work queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(pub(crate) u64);

/// Round, then place within it.
pub(crate) type Place = (u64, u64);

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
        if !self.granted {
            self.granted = true;
            self.grant(1, quantum, cap);
        }
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
}

impl Ring {
    /// A client whose queue was empty takes its turn from the next round on: coming back within a
    /// round gains nothing.
    pub(crate) fn join(&mut self, id: ClientId, weight: u32) -> Account {
        let place = (self.round + 1, self.issue());
        self.turns.insert(place, id);
        Account { weight, credit: 0, granted: false, place, passed: None }
    }

    pub(crate) fn leave(&mut self, account: &Account) {
        self.turns.remove(&account.place);
        if let Some(key) = account.passed {
            self.passed.remove(&key);
        }
    }

    /// Begins, or goes on with, the earliest round in which a turn is left.
    pub(crate) fn begin_round(&mut self) -> Option<u64> {
        let (&(round, _), _) = self.turns.first_key_value()?;
        self.round = round;
        Some(round)
    }

    /// The first turn at or after `from` within `from`'s round.
    pub(crate) fn turn_from(&self, from: Place) -> Option<(Place, ClientId)> {
        let (&place, &id) = self.turns.range(from..(from.0 + 1, 0)).next()?;
        Some((place, id))
    }

    /// Ends a turn: the client's next is in the following round.
    pub(crate) fn end_turn(&mut self, id: ClientId, account: &mut Account) {
        self.turns.remove(&account.place);
        account.place = (account.place.0 + 1, self.issue());
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

    /// The client that was passed over first; it is not among them any more, and its account's
    /// mark must go with [`Account::lead`].
    pub(crate) fn next_leader(&mut self) -> Option<ClientId> {
        self.passed.pop_first().map(|(_, id)| id)
    }

    fn issue(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_leaves_and_comes_back_waits_for_the_next_round() {
        let mut ring = Ring::default();
        let (a, b) = (ClientId(1), ClientId(2));
        let first = ring.join(a, 1);
        let _other = ring.join(b, 1);
        assert_eq!(ring.begin_round(), Some(1));
        ring.leave(&first);
        let again = ring.join(a, 1);
        assert_eq!(again.place.0, 2);
        assert_eq!(ring.turn_from((1, 0)).map(|(_, id)| id), Some(b));
        assert_eq!(again.credit, 0);
    }

    #[test]
    fn a_turn_that_was_cut_short_is_not_granted_twice() {
        let mut ring = Ring::default();
        let mut account = ring.join(ClientId(1), 3);
        account.begin_turn(10, 1000);
        account.begin_turn(10, 1000);
        assert_eq!(account.credit, 30);
        ring.end_turn(ClientId(1), &mut account);
        account.begin_turn(10, 1000);
        assert_eq!(account.credit, 60);
    }

    #[test]
    fn credit_is_capped_by_weight() {
        let mut account = Ring::default().join(ClientId(1), 2);
        account.grant(u64::MAX, 10, 100);
        assert_eq!(account.credit, 200);
        assert_eq!(account.rounds_until(240, 10), 2);
        assert_eq!(account.rounds_until(200, 10), 0);
    }
}
