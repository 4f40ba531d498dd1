//! What can be told from one batch.

use std::collections::BTreeMap;

use super::Violation;
use super::ledger::Ledger;
use crate::{Batch, Config, Time};

/// Invariants 2, 3 and 7.
pub(super) fn check<T>(config: &Config, now: Time, batch: &Batch<T>) -> Result<(), Violation> {
    let sum = batch.items.iter().map(|item| item.cost).sum();
    let budget = config.max_batch_cost;
    if batch.items.is_empty() || sum != batch.cost || sum > budget {
        let items = batch.items.len();
        return Err(Violation::BatchCost { items, sum, claimed: batch.cost, budget });
    }
    for item in &batch.items {
        if let Some(deadline) = item.deadline.filter(|deadline| *deadline <= now) {
            return Err(Violation::RanExpired { ticket: item.ticket, now, deadline });
        }
    }
    check_lengths(config, batch)
}

/// The first request sets the window; an overdue one joins without regard to it.
fn check_lengths<T>(config: &Config, batch: &Batch<T>) -> Result<(), Violation> {
    let bound_by_it = batch
        .items
        .iter()
        .enumerate()
        .filter(|(i, item)| *i == 0 || item.waited < config.age_guard)
        .map(|(_, item)| item.length.max(1));
    let (shortest, longest) =
        bound_by_it.fold((u32::MAX, 0), |(low, high), length| (low.min(length), high.max(length)));
    // Classes are computed in floating point.
    if f64::from(longest) / f64::from(shortest) > config.max_length_ratio * (1.0 + 1e-9) {
        return Err(Violation::LengthsApart { shortest, longest });
    }
    Ok(())
}

/// Invariant 6: a client that launched a deadline has no earlier one left.
pub(super) fn check_deadline_order<T>(batch: &Batch<T>, left: &Ledger) -> Result<(), Violation> {
    let mut launched = BTreeMap::new();
    for item in &batch.items {
        if let Some(deadline) = item.deadline {
            let latest = launched.entry(item.client.clone()).or_insert(deadline);
            *latest = deadline.max(*latest);
        }
    }
    for (_, pending) in left.pending() {
        let Some(left) = pending.deadline else {
            continue;
        };
        let Some(&launched) = launched.get(&pending.client) else {
            continue;
        };
        if left < launched {
            return Err(Violation::DeadlineOrder {
                client: pending.client.clone(),
                left,
                launched,
            });
        }
    }
    Ok(())
}
