//! Each label once, in order, bit for bit, on a simulated network. As `acceptance simulate`, with fewer
//! seeds.

#![allow(missing_docs)]

use stillhouse_tests::scenarios::{Figures, simulate::simulate};

#[test]
fn whatever_happens_each_label_comes_once_in_order_with_its_bits() {
    let mut figures = Figures::default();
    simulate(&mut figures, 0, 12);
    assert!(figures.passed(), "{}", figures.text());
}
