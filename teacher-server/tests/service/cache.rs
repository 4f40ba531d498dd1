//! A row is computed once, whoever asks for it, when, and in which encoding.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use stillhouse_proto::{
    decode,
    labels::SoftLabels,
    v1::{
        CancelRequest, DType, Encoding, HiddenEncoding, LabelRequest, LabelResponse,
        LabelStreamRequest, TopKEncoding, encoding::Kind, label_stream_request::Action,
    },
};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    gated::{Client, Gated, bind, label, request, serve_with},
    shares::queue_holds,
};

/// Long enough for whatever is on its way to arrive.
const MOMENT: Duration = Duration::from_millis(100);

async fn serve(model: &Arc<Gated>) -> (Client, teacher_server::Running) {
    serve_with(Arc::clone(model), |settings| settings.cache.enabled = true).await
}

fn spawn(client: &Client, request: LabelRequest) -> JoinHandle<Result<LabelResponse, Status>> {
    let mut client = client.clone();
    tokio::spawn(async move { Ok(client.label(request).await?.into_inner()) })
}

/// The logits of class 0, one for each row.
fn values(response: &LabelResponse) -> Vec<f32> {
    let batch = decode(&response.labels[0]).unwrap();
    let SoftLabels::Dense { values, .. } = batch.labels else { panic!("dense was asked for") };
    values.chunks(batch.classes).map(|row| row[0]).collect()
}

fn rows_run(model: &Gated) -> usize {
    model.rows_run.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_computed_is_not_computed_again() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) = serve(&model).await;
    let first = client.label(request(1, &[1.0, 2.0, 1.0])).await.unwrap().into_inner();
    assert_eq!(values(&first), [1.0, 2.0, 1.0]);
    assert_eq!((rows_run(&model), first.cached_rows), (2, 1), "equal rows of a request are one");

    let second = client.label(request(2, &[3.0, 2.0])).await.unwrap().into_inner();
    assert_eq!(values(&second), [3.0, 2.0]);
    assert_eq!((rows_run(&model), second.cached_rows), (3, 1));

    // Temperature and encoding play no part.
    let top = Kind::TopK(TopKEncoding { k: 1, dtype: DType::F32.into() });
    let top = LabelRequest {
        temperatures: vec![0.5, 7.0],
        encoding: Some(Encoding { kind: Some(top) }),
        ..request(3, &[3.0, 1.0, 2.0])
    };
    let third = client.label(top).await.unwrap().into_inner();
    assert_eq!((third.labels.len(), third.cached_rows, rows_run(&model)), (2, 3, 3));
    let timing = third.timing.unwrap();
    assert_eq!((timing.queue_us, timing.compute_us), (0, 0));
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_wait_at_the_same_time_share_one_forward_pass() {
    let (model, permit) = Gated::new(false);
    let (client, running) = serve(&model).await;
    let busy = spawn(&client, request(0, &[0.0]));
    model.has_taken(1).await;
    let waiting: Vec<_> = (1..=8)
        .map(|id| {
            let client_name = format!("student-{id}");
            spawn(&client, LabelRequest { client: client_name, ..request(id, &[1.0, 2.0, 3.0]) })
        })
        .collect();
    tokio::time::sleep(MOMENT).await;
    permit.send(()).unwrap();
    permit.send(()).unwrap();
    busy.await.unwrap().unwrap();
    let mut cached = 0;
    for answer in waiting {
        let response = answer.await.unwrap().unwrap();
        assert_eq!(values(&response), [1.0, 2.0, 3.0]);
        cached += response.cached_rows;
    }
    assert_eq!((rows_run(&model), cached), (1 + 3, 7 * 3));
    drop(permit);
    running.shutdown().await.unwrap();
}

/// The device is busy with a first batch, and `leader` asks for rows before `follower` does.
async fn leader_and_follower(
    model: &Gated,
    client: &Client,
    leader: LabelRequest,
) -> [JoinHandle<Result<LabelResponse, Status>>; 3] {
    let busy = spawn(client, request(0, &[0.0]));
    model.has_taken(1).await;
    let leader = spawn(client, leader);
    tokio::time::sleep(MOMENT).await;
    let follower = LabelRequest { client: "follower".to_owned(), ..request(2, &[2.0, 1.0]) };
    let follower = spawn(client, follower);
    tokio::time::sleep(MOMENT).await;
    [busy, leader, follower]
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_shares_a_row_gets_it_although_the_first_to_ask_went_away() {
    let (model, permit) = Gated::new(false);
    let (client, running) = serve(&model).await;
    let rows = request(1, &[1.0, 2.0]);
    let [busy, leader, follower] = leader_and_follower(&model, &client, rows).await;
    leader.abort();
    tokio::time::sleep(MOMENT).await;
    permit.send(()).unwrap();
    permit.send(()).unwrap();
    busy.await.unwrap().unwrap();
    assert_eq!(values(&follower.await.unwrap().unwrap()), [2.0, 1.0]);
    assert_eq!(rows_run(&model), 3);
    drop(permit);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_shares_a_row_gets_it_although_the_first_to_ask_ran_out_of_time() {
    let (model, permit) = Gated::new(false);
    let (client, running) = serve(&model).await;
    let short = LabelRequest { timeout_ms: 150, ..request(1, &[1.0, 2.0]) };
    let [busy, leader, follower] = leader_and_follower(&model, &client, short).await;
    assert_eq!(leader.await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    permit.send(()).unwrap();
    permit.send(()).unwrap();
    busy.await.unwrap().unwrap();
    assert_eq!(values(&follower.await.unwrap().unwrap()), [2.0, 1.0]);
    drop(permit);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_request_leaves_those_who_share_its_rows_alone() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve(&model).await;
    let busy = spawn(&client, request(0, &[0.0]));
    model.has_taken(1).await;
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let stream = client.label_stream(ReceiverStream::new(requests)).await.unwrap();
    let mut answers = stream.into_inner();
    send.send(label(request(1, &[1.0]))).await.unwrap();
    tokio::time::sleep(MOMENT).await;
    let follower = spawn(&client, request(2, &[1.0]));
    tokio::time::sleep(MOMENT).await;
    let cancel = LabelStreamRequest { action: Some(Action::Cancel(CancelRequest { id: 1 })) };
    send.send(cancel).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().id, 1);
    permit.send(()).unwrap();
    permit.send(()).unwrap();
    busy.await.unwrap().unwrap();
    assert_eq!(values(&follower.await.unwrap().unwrap()), [1.0]);
    drop(permit);
    running.shutdown().await.unwrap();
}

/// A client whose own queue is long does not make another wait that asks for the same rows.
#[tokio::test(flavor = "multi_thread")]
async fn sharing_rows_with_a_busy_client_costs_nobody_their_turn() {
    let (model, permit) = Gated::new(false);
    let server = bind(Arc::clone(&model), |settings| {
        settings.cache.enabled = true;
        settings.limits.max_rows = 2;
        settings.batching.max_batch_rows = 2;
        settings.batching.max_queue_rows = 64;
        settings.batching.max_client_rows = 64;
    })
    .await;
    let (status, running) = (server.status(), server.spawn());
    let client = Client::connect(format!("http://{}", running.address())).await.unwrap();
    let busy = spawn(&client, request(0, &[0.0]));
    model.has_taken(1).await;
    // Ten batches of one client; the last of them shares its rows with another client.
    let hog = |id: u64| LabelRequest {
        client: "hog".to_owned(),
        ..request(id, &[id as f32, id as f32 + 0.5])
    };
    let mut queued = Vec::new();
    for id in 1..=10 {
        queued.push(spawn(&client, hog(id)));
        queue_holds(2 * id, &status).await;
    }
    let other = LabelRequest { client: "other".to_owned(), ..hog(10) };
    let other = spawn(&client, other);
    // It has a place of its own.
    queue_holds(2 * 10 + 2, &status).await;
    // The batch that runs, and one of each client.
    (0..3).for_each(|_| permit.send(()).unwrap());
    let response = tokio::time::timeout(Duration::from_secs(20), other).await.unwrap();
    assert_eq!(values(&response.unwrap().unwrap()), [10.0, 10.5]);
    drop(permit);
    busy.await.unwrap().unwrap();
    for answer in queued {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(rows_run(&model), 1 + 20, "what the other client had run was not run again");
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_states_and_logits_of_a_row_are_shared_once_somebody_asked_for_both() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) = serve(&model).await;
    let hidden = |id, rows: &[f32]| {
        let kind = Kind::Hidden(HiddenEncoding { dtype: DType::F32.into() });
        LabelRequest { encoding: Some(Encoding { kind: Some(kind) }), ..request(id, rows) }
    };
    client.label(request(1, &[1.0])).await.unwrap();
    // Its hidden state was not kept.
    let response = client.label(hidden(2, &[1.0])).await.unwrap().into_inner();
    let SoftLabels::Hidden { states, .. } = decode(&response.labels[0]).unwrap().labels else {
        panic!("hidden was asked for")
    };
    assert_eq!((states, rows_run(&model)), (vec![1.0], 2));
    client.label(request(3, &[1.0, 2.0])).await.unwrap();
    client.label(hidden(4, &[2.0, 1.0])).await.unwrap();
    assert_eq!(rows_run(&model), 3);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_finite_is_not_kept() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) = serve(&model).await;
    for run in 1..=2 {
        let response = client.label(request(run, &[101.0, 1.0])).await.unwrap().into_inner();
        assert_eq!(response.row_errors.len(), 1);
        assert_eq!(rows_run(&model), 1 + run as usize);
    }
    running.shutdown().await.unwrap();
}

async fn with_disk(model: &Arc<Gated>, folder: &Path) -> (Client, teacher_server::Running) {
    serve_with(Arc::clone(model), |settings| {
        settings.cache.enabled = true;
        settings.cache.disk_dir = Some(folder.to_owned());
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_tier_outlives_the_server_and_a_damaged_entry_is_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    let (model, permit) = Gated::new(false);
    drop(permit);
    let rows: Vec<f32> = (0..100).map(|row| row as f32).collect();
    let (mut client, running) = with_disk(&model, folder.path()).await;
    client.label(request(1, &rows)).await.unwrap();
    running.shutdown().await.unwrap();
    assert_eq!(rows_run(&model), 100);

    let (mut client, running) = with_disk(&model, folder.path()).await;
    let response = client.label(request(2, &rows)).await.unwrap().into_inner();
    assert_eq!(values(&response), rows);
    assert_eq!((rows_run(&model), response.cached_rows), (100, 100));
    running.shutdown().await.unwrap();

    // One bit of one entry.
    let file = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
    let file = file.into_iter().find(|file| file.extension().is_some_and(|ext| ext == "sqlite"));
    let file = file.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let entry: Vec<u8> = [50.0_f32, -50.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let at = bytes.windows(8).position(|window| window == entry).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (mut client, running) = with_disk(&model, folder.path()).await;
    let response = client.label(request(3, &rows)).await.unwrap().into_inner();
    assert_eq!(values(&response), rows);
    assert_eq!((rows_run(&model), response.cached_rows), (101, 99));
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (_client, running) = with_disk(&model, folder.path()).await;
    let mut settings = teacher_server::Settings::embedded("gated");
    settings.cache.disk_dir = Some(folder.path().to_owned());
    let model = Arc::clone(&model) as Arc<dyn teacher_server::model::Model>;
    let ensemble = teacher_server::ensemble::Ensemble::new([("gated".into(), model)]).unwrap();
    let error = teacher_server::Server::bind_ensemble(settings, ensemble).await.err().unwrap();
    assert!(error.to_string().contains("is in use by another process"), "{error}");
    running.shutdown().await.unwrap();
}
