//! Compiles the `.proto` files with protox, so that no protoc is needed on the machine.

use std::{env, error::Error, fs, path::PathBuf};

const PROTO: &str = "distill/v1/teacher.proto";

fn main() -> Result<(), Box<dyn Error>> {
    // Without this line any change in the package would run the build script again.
    println!("cargo:rerun-if-changed={PROTO}");

    let descriptors = protox::compile([PROTO], ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("distill_v1_descriptor.bin"), prost_message_bytes(&descriptors))?;

    tonic_prost_build::configure()
        .bytes(".distill.v1")
        // An empty `Labels` takes two bytes of a message. With its payload beside it, and not in it,
        // that becomes 32 bytes of memory and not 184: `limits` has what a peer can make of that.
        .boxed(".distill.v1.Labels.payload.dense")
        .boxed(".distill.v1.Labels.payload.top_k")
        .boxed(".distill.v1.Labels.payload.ids")
        .boxed(".distill.v1.Labels.payload.sampled")
        .boxed(".distill.v1.Labels.payload.hidden")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}

fn prost_message_bytes(set: &tonic_prost_build::FileDescriptorSet) -> Vec<u8> {
    use protox::prost::Message as _;
    set.encode_to_vec()
}
