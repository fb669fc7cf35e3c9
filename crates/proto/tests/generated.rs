//! Checks that `src/generated` matches the protobuf files.
//!
//! The generated files are part of the source, because the generator and its dependencies would
//! take up a tenth of a first build. After a change of `proto/`, write them again with
//! `GENERATE=1 cargo test -p hashfinder-proto --test generated`.

use std::{env, fs, path::Path};

use prost::Message;

#[test]
fn the_generated_files_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    fs::create_dir_all(&out).unwrap();
    // `protox` reads the protobuf files, so `protoc` is not needed.
    let protos = [
        "hash_name.proto",
        "hashfinder/v1/finder.proto",
        "hashfinder/fleet/v1/fleet.proto",
        "hashfinder/fleet/v1/operations.proto",
    ];
    let mut descriptors = protox::compile(protos, [root.join("../../proto")]).unwrap();
    for file in &mut descriptors.file {
        // The comments of Google's files are long, and written neither for Rust nor for our users.
        if file.name().starts_with("google/") {
            file.source_code_info = None;
        }
    }
    // The messages of a fleet are not part of what clients see by reflection.
    let mut public = descriptors.clone();
    public
        .file
        .retain(|file| !file.name().starts_with("hashfinder/fleet/"));
    fs::write(out.join("descriptors.binpb"), public.encode_to_vec()).unwrap();
    tonic_prost_build::configure()
        // How a client connects is not part of the contract.
        .build_transport(false)
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .out_dir(&out)
        .compile_fds(descriptors)
        .unwrap();
    // The files for other packages only describe options, or have their Rust types in a library.
    for name in [
        "descriptors.binpb",
        "google.longrunning.rs",
        "hash_name.rs",
        "hashfinder.fleet.v1.rs",
        "hashfinder.v1.rs",
    ] {
        let generated = fs::read(out.join(name)).unwrap();
        let file = root.join("src/generated").join(name);
        if env::var_os("GENERATE").is_some() {
            fs::create_dir_all(root.join("src/generated")).unwrap();
            fs::write(&file, &generated).unwrap();
        }
        assert!(
            fs::read(&file).is_ok_and(|present| present == generated),
            "src/generated/{name} is not what proto/ generates; write it again with \
             `GENERATE=1 cargo test -p hashfinder-proto --test generated`"
        );
    }
}
