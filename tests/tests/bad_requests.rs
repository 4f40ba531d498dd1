//! Every bad request is told what is wrong with it, over the wire, and nothing else suffers.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use stillhouse_proto::v1::{
    DType, IdsEncoding, LabelRequest, TopKEncoding, encoding::Kind, label_request::Inputs,
};
use stillhouse_tests::{
    client::{self, Client},
    models,
    process::Teacher,
};
use tonic::Code;
use tonic_types::StatusExt as _;

const WIDTH: usize = 4;

type Change = Box<dyn FnOnce(&mut LabelRequest)>;

async fn refused(client: &mut Client, change: impl FnOnce(&mut LabelRequest)) -> tonic::Status {
    let mut request = client::request(1, &[0.5; 2 * WIDTH], WIDTH);
    change(&mut request);
    client.label(request).await.unwrap_err()
}

#[tokio::test]
async fn bad_requests_are_told_why() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[8], 5, 1);
    let teacher = Teacher::start(
        folder.path(),
        &["--set", "limits.max_rows=16", "--set", "limits.max_message_bytes=65536"],
    );
    let mut client = client::connect(teacher.address()).await;

    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let status = refused(&mut client, |r| r.temperatures = vec![temperature]).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        let text = status.message();
        assert!(text.contains("temperatures[0]") && text.contains("above 0"), "{text}");
        let details = status.get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, "temperatures[0]");
    }
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|r| r.temperatures = vec![1.0; 9]), "1 to 8"),
        (Box::new(|r| r.inputs = Some(client::features(&[0.0; 3], 3))), "[rows, 4]"),
        (Box::new(|r| tensor(r).dtype = 9), "dtype"),
        (Box::new(|r| tensor(r).dtype = DType::F16.into()), "needs exactly 16"),
        (Box::new(|r| tensor(r).data.truncate(31)), "31 bytes"),
        (Box::new(|r| tensor(r).shape[0] = 0), "0 rows"),
        (Box::new(|r| r.inputs = Some(client::features(&[0.0; 17 * WIDTH], WIDTH))), "1 to 16"),
        (Box::new(|r| r.encoding = top_k(0)), "1 to the 5 classes"),
        (Box::new(|r| r.encoding = top_k(6)), "1 to the 5 classes"),
        (Box::new(|r| r.encoding = ids(&[0, 5])), "ids[1] is 5"),
        (Box::new(|r| r.encoding = None), "one of dense"),
    ];
    for (change, expected) in cases {
        let status = refused(&mut client, change).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(expected), "{:?} lacks {expected:?}", status.message());
    }

    // The connection and the server are as good as before.
    let good = client.label(client::request(2, &[0.5; WIDTH], WIDTH)).await.unwrap().into_inner();
    assert_eq!(good.id, 2);
    assert_eq!(teacher.metric("stillhouse_teacher_requests_total{outcome=\"invalid\"}"), 15.0);
    assert_eq!(teacher.metric("stillhouse_teacher_requests_total{outcome=\"labelled\"}"), 1.0);
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_with_both_sizes() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[8], 5, 1);
    let teacher = Teacher::start(folder.path(), &["--set", "limits.max_message_bytes=65536"]);
    let mut client = client::connect(teacher.address()).await;
    let request = client::request(1, &vec![0.5; 20_000], WIDTH);
    let status = client.label(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("65536"), "{status:?}");
    client.label(client::request(2, &[0.5; WIDTH], WIDTH)).await.unwrap();
}

fn tensor(request: &mut LabelRequest) -> &mut stillhouse_proto::v1::Tensor {
    match &mut request.inputs {
        Some(Inputs::Features(tensor)) => tensor,
        other => panic!("{other:?}"),
    }
}

fn top_k(k: u32) -> Option<stillhouse_proto::v1::Encoding> {
    client::encoding(Kind::TopK(TopKEncoding { k, dtype: 0 }))
}

fn ids(ids: &[u32]) -> Option<stillhouse_proto::v1::Encoding> {
    let ids = stillhouse_proto::request::pack_ids(ids);
    client::encoding(Kind::Ids(IdsEncoding { ids_per_row: 1, ids, dtype: 0 }))
}
