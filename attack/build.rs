//! Generates the clients that the healthy calls and the list of searches are asked for with.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let protos = "../proto";
    println!("cargo::rerun-if-changed={protos}");
    let descriptors = protox::compile(["hash_name.proto", "hashfinder/v1/finder.proto"], [protos])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
