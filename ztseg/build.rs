//! Puts the kernel object where `datapath::object` embeds it.
//!
//! `cargo xtask` builds the object and names it in `ZTSEG_EBPF_OBJECT`. Without it, as in a plain
//! `cargo build` or `cargo test`, an empty file stands in, so that everything but the datapath
//! builds and tests with no eBPF toolchain.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;

const OBJECT: &str = "ZTSEG_EBPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let out = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?;
    let embedded = Path::new(&out).join("ztseg-ebpf.o");
    match env::var_os(OBJECT).filter(|path| !path.is_empty()) {
        Some(object) => {
            let object = Path::new(&object);
            println!("cargo::rerun-if-changed={}", object.display());
            fs::copy(object, &embedded).map_err(|error| {
                format!(
                    "{OBJECT} names {}, which cannot be read: {error}. Build it with \
                     `cargo xtask build`, or unset {OBJECT} to build without the kernel programs.",
                    object.display()
                )
            })?;
        }
        None => fs::write(&embedded, [])?,
    }
    Ok(())
}
