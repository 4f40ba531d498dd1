//! A client that has no .proto file finds the services and their descriptors by reflection.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use prost::Message as _;
use prost_types::FileDescriptorProto;
use stillhouse_tests::{models, process::Teacher};
use tonic::transport::{Channel, Endpoint};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn ask(
    client: &mut ServerReflectionClient<Channel>,
    what: MessageRequest,
) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(what) };
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap()
}

#[tokio::test]
async fn services_and_their_files_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let teacher = Teacher::start(folder.path(), &[]);
    let channel = Endpoint::from_shared(teacher.url()).unwrap().connect().await.unwrap();
    let mut client = ServerReflectionClient::new(channel);

    let list = ask(&mut client, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(list) = list else { panic!("{list:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for service in ["distill.v1.TeacherService", "grpc.health.v1.Health"] {
        assert!(names.contains(&service), "{names:?}");
    }

    let symbol = MessageRequest::FileContainingSymbol("distill.v1.LabelRequest".to_owned());
    let files = ask(&mut client, symbol).await;
    let MessageResponse::FileDescriptorResponse(files) = files else { panic!("{files:?}") };
    let mut messages = files.file_descriptor_proto.iter().flat_map(|bytes| {
        FileDescriptorProto::decode(bytes.as_slice()).expect("a file descriptor").message_type
    });
    let request = messages.find(|message| message.name() == "LabelRequest").unwrap();
    assert!(request.field.iter().any(|field| field.name() == "temperatures"));
}
