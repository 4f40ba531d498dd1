//! A plain gRPC client of a teacher, and the requests it sends.

use std::net::SocketAddr;

use stillhouse_proto::v1::{
    DType, DenseEncoding, Encoding, LabelRequest, LabelStreamRequest, Tensor, encoding::Kind,
    label_request::Inputs, label_stream_request::Action,
    teacher_service_client::TeacherServiceClient,
};
use tonic::transport::{Channel, Endpoint};

/// A connected client.
pub type Client = TeacherServiceClient<Channel>;

/// Connects.
pub async fn connect(address: SocketAddr) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.tcp_nodelay(true).connect().await.expect("the teacher accepts");
    TeacherServiceClient::new(channel)
        .max_decoding_message_size(256 << 20)
        .max_encoding_message_size(256 << 20)
}

/// `[rows, width]` of f32 features.
pub fn features(values: &[f32], width: usize) -> Inputs {
    let shape = [values.len() / width, width];
    Inputs::Features(Tensor::from_f32(values, DType::F32, &shape).unwrap())
}

/// An encoding, wrapped as a request holds it.
pub fn encoding(kind: Kind) -> Option<Encoding> {
    Some(Encoding { kind: Some(kind) })
}

/// A dense request at T = 1 for rows of f32 features.
pub fn request(id: u64, values: &[f32], width: usize) -> LabelRequest {
    LabelRequest {
        id,
        client: "test".to_owned(),
        inputs: Some(features(values, width)),
        temperatures: vec![1.0],
        encoding: encoding(Kind::Dense(DenseEncoding::default())),
        timeout_ms: 0,
        ensemble_rule: 0,
        traceparent: String::new(),
    }
}

/// A request as a stream carries it.
pub fn on_stream(request: LabelRequest) -> LabelStreamRequest {
    LabelStreamRequest { action: Some(Action::Label(request)) }
}
