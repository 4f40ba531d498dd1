//! Many runs over one recipe: several seeds, students of teachers that the sweep itself trained, and
//! one table of what came out, beside published figures where there are any.
//!
//! * [`load`]: the file, with every run's recipe checked; start here.
//! * [`run`]: trains what is not yet trained, a few runs at a time.
//! * [`Table`]: what came out.

mod check;
mod file;
mod plan;
mod runner;
mod table;

pub use file::{Paper, Point, Run, Sweep, TaughtBy};
pub use plan::{Plan, load};
pub use runner::run;
pub use table::Table;
