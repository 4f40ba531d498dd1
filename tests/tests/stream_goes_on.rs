//! A bad item in the middle of a stream is answered with an error of its own; the stream goes on.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::HashMap;

use stillhouse_proto::v1::{LabelStreamRequest, label_stream_response::Result as Answer};
use stillhouse_tests::{client, models, process::Teacher};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

const WIDTH: usize = 4;

#[tokio::test]
async fn a_bad_item_does_not_end_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[8], 5, 1);
    let teacher = Teacher::start(folder.path(), &[]);
    let mut client = client::connect(teacher.address()).await;

    let mut items: Vec<LabelStreamRequest> = (0..50)
        .map(|id| client::on_stream(client::request(id, &[id as f32; WIDTH], WIDTH)))
        .collect();
    let mut bad = client::request(20, &[0.0; WIDTH], WIDTH);
    bad.temperatures = vec![f32::NAN];
    items[20] = client::on_stream(bad);
    items[30] = LabelStreamRequest { action: None };
    let mut answers = client.label_stream(tokio_stream::iter(items)).await.unwrap().into_inner();

    let mut by_id = HashMap::new();
    let mut failed = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.result.unwrap() {
            Answer::Response(response) => {
                assert_eq!(response.id, answer.id);
                assert!(by_id.insert(answer.id, response).is_none(), "{} twice", answer.id);
            }
            Answer::Error(error) => failed.push((answer.id, error)),
        }
    }
    assert_eq!(by_id.len(), 48);
    assert_eq!(failed.len(), 2);
    assert!(failed.iter().all(|(_, error)| error.code == Code::InvalidArgument as i32));
    assert!(
        failed.iter().any(|(id, error)| *id == 20 && error.message.contains("temperatures[0]"))
    );

    // What came over the stream is what a call of its own gets.
    for id in [0, 19, 49] {
        let request = client::request(id, &[id as f32; WIDTH], WIDTH);
        let alone = client.label(request).await.unwrap().into_inner();
        assert_eq!(alone.labels, by_id[&id].labels);
    }
}

#[tokio::test]
async fn a_message_above_the_limit_ends_its_stream_after_the_answers_before_it() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[8], 5, 1);
    let teacher = Teacher::start(folder.path(), &["--set", "limits.max_message_bytes=65536"]);
    let mut client = client::connect(teacher.address()).await;
    let (send, requests) = mpsc::channel(8);
    let mut other = client.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();

    let mut items: Vec<_> = (0..5)
        .map(|id| client::on_stream(client::request(id, &[id as f32; WIDTH], WIDTH)))
        .collect();
    items.push(client::on_stream(client::request(5, &vec![0.0; 20_000], WIDTH)));
    items.push(client::on_stream(client::request(6, &[0.0; WIDTH], WIDTH)));
    let mut answers = client.label_stream(tokio_stream::iter(items)).await.unwrap().into_inner();
    let mut answered = 0;
    let end = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                assert!(matches!(answer.result, Some(Answer::Response(_))), "{answer:?}");
                answered += 1;
            }
            Ok(None) => panic!("the stream ended as if nothing had been wrong"),
            Err(status) => break status,
        }
    };
    assert_eq!(answered, 5);
    assert_eq!(end.code(), Code::OutOfRange, "{end:?}");
    assert!(end.message().contains("65536"), "{end:?}");

    // The connection's other stream does not notice.
    send.send(client::on_stream(client::request(9, &[1.0; WIDTH], WIDTH))).await.unwrap();
    assert_eq!(other.message().await.unwrap().unwrap().id, 9);
}
