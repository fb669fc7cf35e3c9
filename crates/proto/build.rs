//! Generates the Rust types of the services. `protox` reads the protobuf files, so `protoc` is not
//! needed.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let protos = "../../proto";
    println!("cargo::rerun-if-changed={protos}");
    let descriptors = protox::compile(["hash_name.proto", "hashfinder/v1/finder.proto"], [protos])?;
    let out = env::var("OUT_DIR")?;
    let path = Path::new(&out).join("descriptors.binpb");
    fs::write(path, descriptors.encode_to_vec())?;
    // How a client connects is not part of the contract.
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
