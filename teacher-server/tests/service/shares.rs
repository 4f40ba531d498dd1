//! What each client gets of a server that others use too: quotas, priorities, weights, and the time that
//! a target promises.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use stillhouse_proto::v1::{
    DType, DenseEncoding, DenseKind, Encoding, FetchHeadRequest, LabelRequest, SampledEncoding,
    encoding::Kind,
};
use teacher_server::settings::{ClientSettings, Priority};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    bounds::{channel, from, refusal},
    gated::{CLASSES, Client, Gated, bind, label, request, serve_with},
};

/// Waits until so many rows are in the queue.
pub(crate) async fn queue_holds(rows: u64, status: &impl Fn() -> String) {
    let sign = format!("\"queue\":{{\"cost\":{rows},");
    let holds = async {
        while !status().contains(&sign) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), holds).await;
    assert!(in_time.is_ok(), "not {rows} rows: {}", status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_the_clients_own_and_refuses_with_a_time_to_try_again() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) = serve_with(Arc::clone(&model), |settings| {
        let quota = ClientSettings { rows_per_second: 10.0, ..Default::default() };
        settings.clients.insert("a".to_owned(), quota);
        // An answer may count as under way for a moment after it was read.
        let quota = ClientSettings { max_in_flight: 2, ..Default::default() };
        settings.clients.insert("default".to_owned(), quota);
    })
    .await;
    // More than a second's worth is let through once, and paid for.
    client.label(from("a", request(1, &[1.0; 40]))).await.unwrap();
    let status = client.label(from("a", request(2, &[1.0]))).await.unwrap_err();
    let text = refusal(&status);
    assert!(text.contains("this client's quota of 10 rows or tokens a second is spent"), "{text}");
    for id in 0..5 {
        client.label(from("b", request(id, &[1.0; 40]))).await.unwrap();
    }
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_counts_as_a_request_of_its_client() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) = serve_with(Arc::clone(&model), |settings| {
        let quota = ClientSettings { requests_per_second: 0.01, ..Default::default() };
        settings.clients.insert("default".to_owned(), quota);
    })
    .await;
    let ask = || FetchHeadRequest { dtype: DType::F32.into() };
    let mut pieces = client.fetch_head(ask()).await.unwrap().into_inner();
    assert_eq!(pieces.message().await.unwrap().unwrap().data.len(), 4 * CLASSES);
    let status = client.fetch_head(ask()).await.unwrap_err();
    let text = refusal(&status);
    assert!(text.contains("this client's quota of 0.01 requests a second is spent"), "{text}");
    let mut late = tonic::Request::new(ask());
    late.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(client.fetch_head(late).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    running.shutdown().await.unwrap();
}

/// One batch with the device, then one request of each client in a queue, the last first.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_higher_priority_goes_first() {
    let (model, permit) = Gated::new(false);
    let server = bind(Arc::clone(&model), |settings| {
        settings.limits.max_rows = 1;
        settings.batching.max_batch_rows = 1;
        for (name, priority) in [("urgent", Priority::High), ("nightly", Priority::Low)] {
            let own = ClientSettings { priority, ..ClientSettings::default() };
            settings.clients.insert(name.to_owned(), own);
        }
    })
    .await;
    let (status, running) = (server.status(), server.spawn());
    let client = Client::connect(format!("http://{}", running.address())).await.unwrap();
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for (id, name) in ["first", "nightly", "normal", "urgent"].into_iter().enumerate() {
        let (mut client, done) = (client.clone(), Arc::clone(&done));
        waiting.push(tokio::spawn(async move {
            client.label(from(name, request(id as u64, &[1.0]))).await.unwrap();
            done.lock().unwrap().push(name);
        }));
        model.has_taken(1).await;
        queue_holds(id as u64, &status).await;
    }
    for batch in 1..=4 {
        permit.send(()).unwrap();
        model.has_taken((batch + 1).min(4)).await;
        while done.lock().unwrap().len() < batch {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for waiting in waiting {
        waiting.await.unwrap();
    }
    assert_eq!(*done.lock().unwrap(), ["first", "urgent", "normal", "nightly"]);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_finds_the_queue_full_is_not_charged_to_the_quota() {
    let (model, permit) = Gated::new(false);
    let server = bind(Arc::clone(&model), |settings| {
        settings.limits.max_rows = 4;
        settings.batching.max_batch_rows = 4;
        settings.batching.max_queue_rows = 4;
        settings.batching.max_client_rows = 4;
        let quota = ClientSettings { rows_per_second: 8.0, ..Default::default() };
        settings.clients.insert("b".to_owned(), quota);
    })
    .await;
    let (status, running) = (server.status(), server.spawn());
    let mut client = Client::connect(format!("http://{}", running.address())).await.unwrap();
    // One with the device, and one that waits.
    let mut others = JoinSet::new();
    for (id, waiting) in [(0, 0), (1, 4)] {
        let mut client = client.clone();
        others.spawn(async move { client.label(from("a", request(id, &[1.0; 4]))).await });
        model.has_taken(1).await;
        queue_holds(waiting, &status).await;
    }
    for id in 2..12 {
        let refused = client.label(from("b", request(id, &[1.0; 4]))).await.unwrap_err();
        let text = refusal(&refused);
        assert!(text.contains("queue") && !text.contains("quota"), "{text}");
    }
    drop(permit);
    for answer in others.join_all().await {
        answer.unwrap();
    }
    client.label(from("b", request(12, &[1.0; 4]))).await.unwrap();
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_are_a_quota_of_the_client_too() {
    let (model, permit) = Gated::new(false);
    let (client, running) = serve_with(Arc::clone(&model), |settings| {
        let quota = ClientSettings { max_in_flight: 1, ..Default::default() };
        settings.clients.insert("a".to_owned(), quota);
    })
    .await;
    let ask = |name, id| {
        let mut client = client.clone();
        tokio::spawn(async move { client.label(from(name, request(id, &[1.0]))).await })
    };
    let first = ask("a", 1);
    model.has_taken(1).await;
    let refused = ask("a", 2).await.unwrap().unwrap_err();
    let text = refusal(&refused);
    assert!(text.contains("this client has 1 requests under way, its quota"), "{text}");
    let others = [ask("b", 3), ask("b", 4)];
    drop(permit);
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    ask("a", 5).await.unwrap().unwrap();
    running.shutdown().await.unwrap();
}

/// Both have more waiting than a batch holds; one has three times the other's weight.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_shared_by_weight() {
    const BATCH: u32 = 64;
    let (model, permit) = Gated::new(false);
    let server = bind(Arc::clone(&model), |settings| {
        settings.limits.max_rows = BATCH;
        settings.limits.max_connection_streams = 256;
        settings.batching.max_batch_rows = BATCH;
        let own = ClientSettings { weight: 3, ..ClientSettings::default() };
        settings.clients.insert("heavy".to_owned(), own);
    })
    .await;
    let (status, running) = (server.status(), server.spawn());
    let client = Client::connect(format!("http://{}", running.address())).await.unwrap();
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = JoinSet::new();
    // The device is busy with this one until all others wait.
    let first = {
        let mut client = client.clone();
        tokio::spawn(async move { client.label(request(0, &[1.0; BATCH as usize])).await })
    };
    model.has_taken(1).await;
    for id in 0..2 * BATCH {
        let name = if id % 2 == 0 { "heavy" } else { "light" };
        let (mut client, done) = (client.clone(), Arc::clone(&done));
        waiting.spawn(async move {
            client.label(from(name, request(id.into(), &[1.0]))).await.unwrap();
            done.lock().unwrap().push(name);
        });
    }
    queue_holds((2 * BATCH).into(), &status).await;
    permit.send(()).unwrap();
    first.await.unwrap().unwrap();
    permit.send(()).unwrap();
    model.has_taken(3).await;
    while done.lock().unwrap().len() < BATCH as usize {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let heavy = done.lock().unwrap().iter().filter(|name| **name == "heavy").count();
    assert_eq!(heavy, 48, "three quarters of a batch of 64");
    drop(permit);
    while let Some(ended) = waiting.join_next().await {
        ended.unwrap();
    }
    running.shutdown().await.unwrap();
}

/// Rows that are known take none of the device's time, and their labels may take much to make.
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_made_in_turns() {
    const MANY: u64 = 120;
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) = serve_with(Arc::clone(&model), |settings| {
        settings.cache.enabled = true;
        settings.limits.max_connection_streams = 256;
    })
    .await;
    let sampled = Kind::Sampled(SampledEncoding { draws: 1 << 14, seed: 1 });
    let encoding = Some(Encoding { kind: Some(sampled) });
    let ask = |id| LabelRequest { encoding: encoding.clone(), ..request(id, &[1.0; 16]) };
    client.label(ask(0)).await.unwrap();
    let done = Arc::new(AtomicU32::new(0));
    let mut many = JoinSet::new();
    for id in 0..MANY {
        let (mut client, request, done) =
            (client.clone(), from("many", ask(id)), Arc::clone(&done));
        many.spawn(async move {
            client.label(request).await.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    while done.load(Ordering::SeqCst) < 10 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.label(from("one", ask(MANY))).await.unwrap();
    let before = u64::from(done.load(Ordering::SeqCst));
    assert!(before < MANY / 2, "after {before} of those that came before it");
    while let Some(ended) = many.join_next().await {
        ended.unwrap();
    }
    running.shutdown().await.unwrap();
}

/// Its answers stay where they are, and so might the turns to make them.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_its_answers_keeps_nobody_elses_from_being_made() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let server = bind(Arc::clone(&model), |settings| {
        settings.cache.enabled = true;
        settings.limits.max_rows = 1024;
    })
    .await;
    let running = server.spawn();
    let mut client = Client::new(channel(running.address()).await);
    // 512 KiB each.
    let kind = DenseKind::LogProbabilities.into();
    let dense = Kind::Dense(DenseEncoding { kind, dtype: DType::F32.into() });
    let ask = |id| LabelRequest {
        temperatures: (1..=8).map(|temperature| temperature as f32).collect(),
        encoding: Some(Encoding { kind: Some(dense.clone()) }),
        ..request(id, &[1.0; 1024])
    };
    client.label(ask(0)).await.unwrap();
    let mut lazy = Client::new(channel(running.address()).await);
    let (send, requests) = tokio::sync::mpsc::channel(64);
    let answers = lazy.label_stream(ReceiverStream::new(requests)).await.unwrap();
    for id in 1..=60 {
        send.send(label(from("lazy", ask(id)))).await.unwrap();
    }
    // Until they have come as far as they do.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answered = client.label(from("other", ask(61)));
    let answered = tokio::time::timeout(Duration::from_secs(60), answered).await;
    answered.expect("the others' answers are made").unwrap();
    drop((send, answers));
    running.shutdown().await.unwrap();
}

/// A row takes a millisecond or more: half of the target is 20 rows at most, where batches could hold 256.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_latency_keeps_batches_small_and_refuses_what_would_take_longer() {
    const TARGET: Duration = Duration::from_millis(40);
    const CLIENTS: u64 = 32;
    let model = Gated::slow(Duration::from_millis(1));
    let (client, running) = serve_with(Arc::clone(&model), |settings| {
        settings.batching.target_latency_ms = TARGET.as_secs_f64() * 1e3;
    })
    .await;
    let refused = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for own in 0..CLIENTS {
        let (mut client, refused) = (client.clone(), Arc::clone(&refused));
        clients.spawn(async move {
            for id in 0.. {
                let asked = from(&format!("client-{own}"), request(id, &[1.0; 4]));
                if let Err(status) = client.label(asked).await {
                    refusal(&status);
                    refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    // Until it has seen how long rows take, on a machine that may have other things to do, batches hold
    // what there is: 128 rows.
    let settled = async {
        let small = |batches: &[usize]| {
            let last = batches.len().checked_sub(30).map(|from| &batches[from..]);
            last.is_some_and(|last| last.iter().all(|rows| *rows <= 20))
        };
        while !small(&model.batches.lock().unwrap()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(60), settled).await;
    assert!(settled.is_ok(), "{:?}", model.batches.lock().unwrap());
    assert!(refused.load(Ordering::Relaxed) > 0, "128 rows are more than may wait");
    clients.shutdown().await;
    running.shutdown().await.unwrap();
}
