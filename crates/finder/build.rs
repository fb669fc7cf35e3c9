//! Generates the services' types. `protox` reads the protobuf, so that no `protoc` is needed.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let protos = "../../proto";
    println!("cargo::rerun-if-changed={protos}");
    let descriptors = protox::compile(["hash_name.proto", "hashfinder/v1/finder.proto"], [protos])?;
    let out = env::var("OUT_DIR")?;
    // The reflection service serves them.
    let path = Path::new(&out).join("descriptors.binpb");
    fs::write(path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
