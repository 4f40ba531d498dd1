//! What can be told from one batch. What it says of its requests is first held against what was
//! admitted; everything else goes by what was admitted.

use std::collections::HashMap;

use super::Violation;
use super::ledger::{Ledger, Pending};
use crate::{Config, Launched, Ticket, Time};

/// That a batch describes a request as it was admitted: part of invariant 1.
pub(super) fn check_item<T>(
    now: Time,
    item: &Launched<T>,
    pending: &Pending,
) -> Result<(), Violation> {
    let claimed = (&item.client, item.cost, item.length, item.deadline, item.waited);
    let waited = now.saturating_sub(pending.admitted);
    let admitted = (&pending.client, pending.cost, pending.length, pending.deadline, waited);
    if claimed == admitted {
        return Ok(());
    }
    Err(Violation::Altered {
        ticket: item.ticket,
        claimed: format!("{claimed:?}"),
        admitted: format!("{admitted:?}"),
    })
}

/// Invariants 2, 3 and 7. `members` are the requests of the batch as admitted, in its order, and
/// `claimed` is the cost that the batch says it has.
pub(super) fn check(
    config: &Config,
    now: Time,
    claimed: u64,
    members: &[(Ticket, Pending)],
) -> Result<(), Violation> {
    let sum = members.iter().map(|(_, pending)| pending.cost).sum();
    let budget = config.max_batch_cost;
    if members.is_empty() || sum != claimed || sum > budget {
        return Err(Violation::BatchCost { items: members.len(), sum, claimed, budget });
    }
    for (ticket, pending) in members {
        if let Some(deadline) = pending.deadline.filter(|deadline| *deadline <= now) {
            return Err(Violation::RanExpired { ticket: *ticket, now, deadline });
        }
    }
    check_lengths(config, now, members)
}

/// The first request sets the window; an overdue one joins without regard to it.
fn check_lengths(
    config: &Config,
    now: Time,
    members: &[(Ticket, Pending)],
) -> Result<(), Violation> {
    let bound_by_it = members
        .iter()
        .enumerate()
        .filter(|(i, (_, pending))| *i == 0 || now < pending.overdue_at(config.age_guard))
        .map(|(_, (_, pending))| pending.length.max(1));
    let (shortest, longest) =
        bound_by_it.fold((u32::MAX, 0), |(low, high), length| (low.min(length), high.max(length)));
    // Classes are computed in floating point.
    if f64::from(longest) / f64::from(shortest) > config.max_length_ratio * (1.0 + 1e-9) {
        return Err(Violation::LengthsApart { shortest, longest });
    }
    Ok(())
}

/// Invariant 6: a client that launched a request has none left that was due before it.
pub(super) fn check_order(
    config: &Config,
    members: &[(Ticket, Pending)],
    left: &Ledger,
) -> Result<(), Violation> {
    let rank = |ticket, pending: &Pending| (pending.due(config.age_guard), ticket);
    let mut launched = HashMap::new();
    for (ticket, pending) in members {
        let rank = rank(*ticket, pending);
        let latest = launched.entry(pending.client.clone()).or_insert(rank);
        *latest = rank.max(*latest);
    }
    for (ticket, pending) in left.pending() {
        let left = rank(ticket, pending);
        if let Some(&launched) = launched.get(&pending.client)
            && left < launched
        {
            let client = pending.client.clone();
            return Err(Violation::Order { client, left: left.0, launched: launched.0 });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Batcher, Forming, Request};

    const NOW: Time = Time::from_millis(5);

    /// A batch of one request, and that request as it was admitted.
    fn launched() -> (Config, Batch<()>, Pending) {
        let config = Config::default();
        let mut batcher = Batcher::new(config.clone()).unwrap();
        let deadline = Some(Time::from_millis(9));
        let request = Request { deadline, length: 3, ..Request::new("a", 7, ()) };
        let pending = Pending::new(Time::ZERO, &request);
        batcher.admit(Time::ZERO, request).unwrap();
        let Forming::Launch(batch) = batcher.form(NOW).decision else { panic!("not launched") };
        (config, batch, pending)
    }

    #[test]
    fn a_batch_that_describes_a_request_otherwise_than_it_was_admitted_is_caught() {
        let (_, batch, pending) = launched();
        assert_eq!(check_item(NOW, &batch.items[0], &pending), Ok(()));
        let alterations: [fn(&mut Launched<()>); 5] = [
            |item| item.client = "b".into(),
            |item| item.cost += 1,
            |item| item.length += 1,
            |item| item.deadline = None,
            |item| item.waited = Time::ZERO,
        ];
        for alter in alterations {
            let (_, mut batch, pending) = launched();
            alter(&mut batch.items[0]);
            let result = check_item(NOW, &batch.items[0], &pending);
            assert!(matches!(result, Err(Violation::Altered { .. })), "{:?}", batch.items[0]);
        }
    }

    /// What was admitted decides, not what the batch says of it.
    #[test]
    fn a_batch_is_judged_by_what_was_admitted() {
        let (config, batch, pending) = launched();
        let ticket = batch.items[0].ticket;
        let check = |config: &Config, now, claimed, pending: &Pending| {
            check(config, now, claimed, &[(ticket, pending.clone())])
        };
        assert_eq!(check(&config, NOW, 7, &pending), Ok(()));
        let wrong_sum = check(&config, NOW, 8, &pending);
        assert!(matches!(wrong_sum, Err(Violation::BatchCost { .. })));
        let small = Config { max_batch_cost: 6, ..config.clone() };
        assert!(matches!(check(&small, NOW, 7, &pending), Err(Violation::BatchCost { .. })));
        let late = check(&config, Time::from_millis(9), 7, &pending);
        assert!(matches!(late, Err(Violation::RanExpired { .. })));
        let grouped = Config { max_length_ratio: 2.0, ..config };
        let long = Pending { length: 7, ..pending.clone() };
        let apart = super::check(&grouped, NOW, 14, &[(ticket, pending), (ticket, long)]);
        assert!(matches!(apart, Err(Violation::LengthsApart { shortest: 3, longest: 7 })));
    }
}
