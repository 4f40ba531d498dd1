//! The `[loss]` section in a file: weighed by alpha, or by both weights, never by all three.

use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de, ser};
use stillhouse_nn::LossConfig;
use stillhouse_runtime::config::below;
use toml::{Table, Value};

use super::strict;

/// Reads the section.
///
/// # Errors
/// As [`strict::section`], and for an alpha that would play no part.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<LossConfig, D::Error> {
    let given = Table::deserialize(deserializer)?;
    let loss: LossConfig = strict::section(Value::Table(given.clone()))
        .map_err(|error| de::Error::custom(error.message()))?;
    match given.get("alpha") {
        Some(alpha) if is_idle(&loss) => {
            let words = format!(
                "{alpha} is not accepted, expected none beside loss.hard_weight and \
                 loss.soft_weight, which stand in for 1 - alpha and alpha"
            );
            Err(de::Error::custom(below("alpha", &words)))
        }
        _ => Ok(loss),
    }
}

/// Writes the section as it can be read again.
///
/// # Errors
/// Those of the serializer.
pub(crate) fn serialize<S: Serializer>(
    loss: &LossConfig,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if !is_idle(loss) {
        return loss.serialize(serializer);
    }
    let mut table = Table::try_from(loss).map_err(ser::Error::custom)?;
    table.remove("alpha");
    table.serialize(serializer)
}

/// Whether alpha plays no part.
fn is_idle(loss: &LossConfig) -> bool {
    loss.hard_weight.is_some() && loss.soft_weight.is_some()
}
