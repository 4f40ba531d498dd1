//! Who is refused, and certificates and tokens that change under load. As `acceptance security`, for a
//! shorter time.

#![allow(missing_docs)]

use stillhouse_tests::scenarios::{Figures, security};

#[test]
fn strangers_and_clients_who_may_not_are_refused() {
    let mut figures = Figures::default();
    security::refusals(&mut figures);
    assert!(figures.passed(), "{}", figures.text());
}

#[test]
fn each_teacher_behind_a_name_has_a_certificate_of_it() {
    let mut figures = Figures::default();
    security::names(&mut figures);
    assert!(figures.passed(), "{}", figures.text());
}

#[test]
fn certificates_authorities_and_tokens_change_without_a_failed_call() {
    let mut figures = Figures::default();
    security::rotation(&mut figures, 5.0);
    assert!(figures.passed(), "{}", figures.text());
}
