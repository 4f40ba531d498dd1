//! Line charts as SVG, for reports.
//!
//! * [`Chart`]: what to draw; [`render`] draws several side by side.
//! * `axis`: where the ticks of an axis go and how they are written.
//! * `svg`: the elements of the picture.

mod axis;
mod chart;
mod svg;

pub use axis::Scale;
pub use chart::{Chart, Series, render};
