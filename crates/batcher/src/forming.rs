//! Forming a batch: when to launch, and who rides.

use crate::batcher::{Batcher, Entry};
use crate::drr::ClientId;
use crate::length::Window;
use crate::{Batch, Formed, Forming, LaunchReason, Launched, Ticket, Time};

/// Room for a batch, or for the rest of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) cost: u64,
    /// Whether others have a part of the batch already: what does not fit may do so in one that is whole,
    /// where the first may be larger than the room.
    pub(crate) is_rest: bool,
}

/// What rides in a batch.
pub(crate) struct Filled<T> {
    pub(crate) items: Vec<Launched<T>>,
    pub(crate) cost: u64,
    /// Whether a request that was paid for is larger than all the room there was, as others had a part of
    /// the batch.
    pub(crate) held_up: bool,
}

/// A batch that is being filled.
struct Draft<T> {
    now: Time,
    items: Vec<Launched<T>>,
    cost: u64,
    /// What may still be added to `cost`.
    room: u64,
    /// What requests may cost that others' part of the batch leaves room for; none: the batch is whole.
    most: Option<u64>,
    held_up: bool,
    /// Which lengths may join; anything may join an empty batch.
    window: Option<Window>,
}

/// How a client's turn ended.
enum Turn {
    /// Its queue is empty; the client is gone.
    Emptied,
    /// Its next request waits for credit.
    Short,
    /// Its next request is paid for and does not fit: the turn goes on in the next batch.
    CutShort,
    /// Its next request is paid for, and too large for what others leave of this batch.
    HeldUp,
    /// None of its requests may join, for their lengths.
    PassedOver,
}

/// What a round came to.
#[derive(Default)]
struct Round {
    launched: bool,
    cut_short: bool,
}

impl<T> Batcher<T> {
    /// Decides what a free device does now: expired work is dropped, then a batch is formed if one
    /// is due. While the device is busy do not call it; more work may come that fits better.
    ///
    /// If anything is queued, a batch is launched at the latest when the oldest request has waited
    /// [`Config::max_wait`](crate::Config::max_wait).
    pub fn form(&mut self, now: Time) -> Formed<T> {
        let expired = self.expire(now);
        let decision = match self.due_at(now) {
            None => Forming::Idle,
            Some((time, _)) if time > now => Forming::Wait(time),
            Some((_, reason)) => {
                let room = Room { cost: self.room(), is_rest: false };
                let Filled { items, cost, .. } = self.fill_within(now, room);
                Forming::Launch(Batch { items, cost, reason })
            }
        };
        Formed { decision, expired }
    }

    /// The earliest moment, `now` or later, at which [`form`](Batcher::form) would launch or drop
    /// something if nothing else is called before; `None` if nothing is queued. While the device is
    /// busy, [`next_deadline`](Batcher::next_deadline) is what there is to wait for.
    pub fn next_event(&self, now: Time) -> Option<Time> {
        let (launch, _) = self.due_at(now)?;
        let first = self.next_deadline().map_or(launch, |deadline| deadline.min(launch));
        Some(first.max(now))
    }

    /// When the next batch is due, and why; nothing if nothing is queued.
    pub(crate) fn due_at(&self, now: Time) -> Option<(Time, LaunchReason)> {
        let waited = self.oldest()?.saturating_add(self.config.max_wait);
        if self.queued_cost() >= self.room() {
            return Some((now, LaunchReason::Full));
        }
        if self.draining {
            return Some((now, LaunchReason::Draining));
        }
        if self.config.max_wait > Time::ZERO && self.next_deadline().is_some_and(|d| d <= waited) {
            return Some((now, LaunchReason::Deadline));
        }
        Some((waited, LaunchReason::Waited))
    }

    /// Takes what rides in a batch, within some room.
    pub(crate) fn fill_within(&mut self, now: Time, room: Room) -> Filled<T> {
        let Room { cost: room, is_rest } = room;
        let (items, most) = (Vec::new(), is_rest.then_some(room));
        let mut draft = Draft { now, items, cost: 0, room, most, held_up: false, window: None };
        self.lead(&mut draft);
        while draft.room > 0 {
            let round = self.round(&mut draft);
            if round.cut_short {
                break;
            }
            if !round.launched {
                let Some(rounds) = self.rounds_to_next(&draft) else { break };
                self.skip_rounds(rounds.saturating_sub(1));
            }
        }
        Filled { items: draft.items, cost: draft.cost, held_up: draft.held_up }
    }

    /// Lets the client that was passed over first, of those that this batch has room for, spend what credit
    /// it has.
    fn lead(&mut self, draft: &mut Draft<T>) {
        let mut held_up = Vec::new();
        while draft.items.is_empty()
            && let Some((place, id)) = self.ring.next_leader()
        {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            client.account.lead();
            if matches!(self.turn(id, draft), Turn::HeldUp) && draft.items.is_empty() {
                held_up.push((place, id));
            }
        }
        // They lead a later batch, still before those that were passed over after them.
        for (place, id) in held_up {
            if let Some(client) = self.clients.get_mut(&id) {
                self.ring.stays_passed(place, id, &mut client.account);
            }
        }
    }

    /// Gives every client that has a turn left in the current round its turn.
    fn round(&mut self, draft: &mut Draft<T>) -> Round {
        let mut summary = Round::default();
        let before = draft.items.len();
        let (quantum, cap) = (self.config.quantum(), self.config.credit_cap());
        let Some(round) = self.ring.begin_round() else {
            return summary;
        };
        let mut last = None;
        while draft.room > 0
            && let Some((place, id)) = self.ring.turn_after(round, last)
        {
            last = Some(place);
            if let Some(client) = self.clients.get_mut(&id) {
                client.account.begin_turn(quantum, cap);
            }
            let turn = self.turn(id, draft);
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            match turn {
                Turn::Emptied => {}
                Turn::CutShort => summary.cut_short = true,
                Turn::Short => self.ring.end_turn(id, &mut client.account),
                Turn::HeldUp => {
                    // The others need not wait until there is room for it.
                    self.ring.pass_over(id, &mut client.account);
                    self.ring.end_turn(id, &mut client.account);
                }
                Turn::PassedOver => {
                    let head = client.queue.head();
                    if head.is_some_and(|head| head.cost <= client.account.credit) {
                        self.ring.pass_over(id, &mut client.account);
                    }
                    self.ring.end_turn(id, &mut client.account);
                }
            }
        }
        summary.launched = draft.items.len() > before;
        summary
    }

    /// Launches what the client's credit pays for and the batch has room for.
    fn turn(&mut self, id: ClientId, draft: &mut Draft<T>) -> Turn {
        loop {
            let Some(client) = self.clients.get_mut(&id) else {
                return Turn::Emptied;
            };
            let pick = client.queue.pick(draft.now, draft.window);
            let Some(&pick) = pick else {
                return Turn::PassedOver;
            };
            if pick.cost > client.account.credit {
                return Turn::Short;
            }
            if pick.cost > draft.room && !(draft.most.is_none() && draft.items.is_empty()) {
                if draft.is_too_large(pick.cost) {
                    draft.held_up = true;
                    return Turn::HeldUp;
                }
                return Turn::CutShort;
            }
            client.account.credit -= pick.cost;
            if let Some(entry) = self.take(pick.ticket) {
                draft.push(pick.ticket, entry);
            }
        }
    }

    /// Rounds until the first request that may join the batch for its length is paid for, whether
    /// the batch has room for it or is then full; `None` where there is none. Clients that had
    /// their turn in an earlier batch count too: a round that a batch goes on with does not visit
    /// them.
    fn rounds_to_next(&self, draft: &Draft<T>) -> Option<u64> {
        let quantum = self.config.quantum();
        let rounds = self.clients.values().filter_map(|client| {
            let pick = client.queue.pick(draft.now, draft.window)?;
            let may_join = !draft.is_too_large(pick.cost);
            may_join.then(|| client.account.rounds_until(pick.cost, quantum))
        });
        rounds.min()
    }

    /// Grants the credit of rounds in which nobody could have launched anything.
    fn skip_rounds(&mut self, rounds: u64) {
        let (quantum, cap) = (self.config.quantum(), self.config.credit_cap());
        if rounds > 0 {
            for client in self.clients.values_mut() {
                client.account.grant(rounds, quantum, cap);
            }
        }
    }
}

impl<T> Draft<T> {
    /// Whether a request can only ride in a batch that others have no part of.
    fn is_too_large(&self, cost: u64) -> bool {
        self.most.is_some_and(|most| cost > most)
    }

    fn push(&mut self, ticket: Ticket, entry: Entry<T>) {
        let Entry { name: client, length, queued, payload, .. } = entry;
        self.window.get_or_insert(Window::around(queued.class)).join(queued.class);
        self.room = self.room.saturating_sub(queued.cost);
        self.cost += queued.cost;
        self.items.push(Launched {
            ticket,
            client,
            cost: queued.cost,
            length,
            deadline: queued.deadline,
            waited: self.now.saturating_sub(queued.admitted),
            payload,
        });
    }
}
