//! The Stillhouse wire contract.
//!
//! * [`v1`]: the messages and the service of `distill/v1/teacher.proto`, generated.

/// Messages, client and server of the package `distill.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("distill.v1");

    /// Encoded `google.protobuf.FileDescriptorSet` of the package, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/distill_v1_descriptor.bin"));
}
