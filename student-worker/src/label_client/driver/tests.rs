//! Endpoints that come and go.

use stillhouse_proto::v1::{DenseEncoding, EnsembleRule, Tensor, label_request::Inputs};
use tonic::transport::Endpoint;

use super::*;
use crate::label_client::{Credentials, Probe, Wanted, WantedInput, backoff::Backoff};

/// Nobody listens at its endpoints.
fn driver() -> Driver<std::iter::Empty<Job>> {
    let wanted = Wanted {
        client: "a".to_owned(),
        probe_temperature: 1.0,
        encoding: Kind::Dense(DenseEncoding::default()),
        ensemble: EnsembleRule::Unspecified,
        input: WantedInput::Features { width: 2 },
        classes: 3,
        request_rows: 1,
        timeout: Duration::from_secs(1),
    };
    let probe = Probe { inputs: Inputs::Features(Tensor::default()), floats: None, rows: 0 };
    let gate = Arc::new(Gate::new(wanted, (Credentials::default(), None), probe));
    let backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(1) };
    let (told, events) = mpsc::channel(1);
    let own = Arc::clone(&gate);
    let connect = move |endpoint, address| Connection {
        endpoint,
        address,
        gate: Arc::clone(&own),
        backoff,
        jitter: Philox::new(1, endpoint as u64),
        events: told.clone(),
    };
    let limits = Limits { timeout: Duration::from_secs(1), budget: Duration::MAX, backoff };
    Driver::new(
        Jobs::planned(std::iter::empty(), 1).0,
        gate,
        Vec::new(),
        Box::new(connect),
        (limits, OnTeacherLoss::Wait, 0),
        (events, mpsc::channel(1).1, Philox::new(1, 0)),
        mpsc::unbounded_channel().0,
    )
}

fn at(hosts: &[&str]) -> Vec<Address> {
    let address = |host: &&str| {
        let name = format!("http://{host}.invalid:1");
        let endpoint = Endpoint::from_shared(name.clone()).unwrap();
        Address::new(name, (*host).to_owned(), endpoint)
    };
    hosts.iter().map(address).collect()
}

fn names(driver: &Driver<std::iter::Empty<Job>>) -> Vec<&str> {
    let names = driver.endpoints.iter().map(|replica| &replica.name["http://".len()..]);
    names.map(|name| name.trim_end_matches(".invalid:1")).collect()
}

#[tokio::test]
async fn the_place_of_an_endpoint_is_for_another_once_it_is_long_gone() {
    let mut driver = driver();
    driver.endpoints_are(at(&["a", "b"]));
    driver.endpoints_are(at(&["b", "c"]));
    assert_eq!(names(&driver), ["a", "b", "c"], "it may still have something to say");
    let go = |replica: &mut Replica, ago: u64| {
        replica.task.take().unwrap().abort();
        replica.gone = clock::now().checked_sub(Duration::from_secs(ago));
    };
    go(&mut driver.endpoints[0], 1);
    driver.endpoints_are(at(&["b", "c", "d"]));
    assert_eq!(names(&driver), ["a", "b", "c", "d"], "it has just gone");

    go(&mut driver.endpoints[2], 3600);
    driver.endpoints[0].gone = clock::now().checked_sub(Duration::from_secs(3600));
    // c is gone for good, too, but its name still stands for it: it was refused.
    driver.endpoints_are(at(&["b", "c", "d", "e", "f"]));
    assert_eq!(names(&driver), ["e", "b", "c", "d", "f"]);
    assert!(driver.endpoints[0].task.is_some() && !driver.endpoints[0].retired);

    driver.endpoints_are(at(&["b", "d", "e", "f"]));
    driver.endpoints_are(at(&["b", "d", "e", "f", "a"]));
    assert_eq!(names(&driver), ["e", "b", "a", "d", "f"], "c has retired since");
}
