//! Kernel modules for a virtual machine.
//!
//! The packages come without `modules.dep`, which depmod(8) writes at installation, so the
//! dependencies are read from the modules themselves (`depends=` in section `.modinfo`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// What the tests may use; a name that this kernel has built in, or does not have, is passed over.
/// Modules that the kernel would load by itself are listed too: there is no modprobe to ask.
const WANTED: &[&str] = &[
    // Interfaces.
    "veth",
    "tun",
    "dummy",
    "bridge",
    "8021q",
    "ifb",
    // Traffic control.
    "sch_ingress",
    "cls_bpf",
    "act_mirred",
    "act_vlan",
    "act_gact",
    "act_bpf",
    // Address translation by nftables, and by iptables on top of it and without.
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_ct",
    "nft_masq",
    "nft_redir",
    "nft_numgen",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_compat",
    "iptable_nat",
    "ip6table_nat",
    "xt_tcpudp",
    "xt_comment",
    "xt_mark",
    "xt_statistic",
    "xt_addrtype",
    "xt_nat",
    "xt_MASQUERADE",
    // Protocols, with the checksum that SCTP asks for by name.
    "crc32c_generic",
    "crc32c_intel",
    "sctp",
    "af_packet",
    // Socket tables over netlink.
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "sctp_diag",
];

/// Copies what is wanted, and what that depends on, into `destination`. Gives the file names in the
/// order in which they must be loaded.
pub(crate) fn copy(modules: &Path, destination: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(destination)
        .with_context(|| format!("cannot make {}", destination.display()))?;
    let mut files = BTreeMap::new();
    index(&modules.join("kernel"), &mut files)?;
    let mut order = Order { files: &files, destination, loaded: Vec::new() };
    for name in WANTED {
        order.add(name)?;
    }
    Ok(order.loaded.iter().map(|name| format!("{name}.ko")).collect())
}

struct Order<'a> {
    files: &'a BTreeMap<String, PathBuf>,
    destination: &'a Path,
    loaded: Vec<String>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = canonical(name);
        let Some(file) = self.files.get(&name) else { return Ok(()) };
        if self.loaded.contains(&name) {
            return Ok(());
        }
        let module = read(file)?;
        for dependency in depends(&module) {
            self.add(&dependency)?;
        }
        let copy = self.destination.join(format!("{name}.ko"));
        fs::write(&copy, module).with_context(|| format!("cannot write {}", copy.display()))?;
        self.loaded.push(name);
        Ok(())
    }
}

/// Module names have `_` where file names may have `-`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// All module files below a folder, by module name.
fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some(file) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, "" | ".xz")) = file.split_once(".ko")
        {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// A module's bytes, decompressed.
fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start xz")?;
    if !output.status.success() {
        bail!("xz cannot read {} ({})", file.display(), output.status);
    }
    Ok(output.stdout)
}

/// The modules that a module needs: `.modinfo` is a list of `key=value`, each ended by a NUL.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\u{7f}ELF\0license=GPL\0depends={depends}\0retpoline=Y\0").into_bytes()
    }

    #[test]
    fn reads_the_dependencies_of_a_module() {
        assert_eq!(depends(&module("stp,llc")), ["stp", "llc"]);
        assert!(depends(&module("")).is_empty());
        assert!(depends(b"no module").is_empty());
    }

    #[test]
    fn loads_dependencies_first_and_once() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let net = folder.path().join("kernel/net");
        fs::create_dir_all(&net)?;
        for (name, needs) in
            [("bridge", "stp,llc"), ("stp", "llc"), ("llc", ""), ("sch_ingress", ""), ("snd", "")]
        {
            fs::write(net.join(format!("{}.ko", name.replace('_', "-"))), module(needs))?;
        }
        let destination = folder.path().join("out");
        let loaded = copy(folder.path(), &destination)?;
        assert_eq!(loaded, ["llc.ko", "stp.ko", "bridge.ko", "sch_ingress.ko"]);
        assert!(destination.join("sch_ingress.ko").is_file());
        assert!(!destination.join("snd.ko").exists());
        Ok(())
    }
}
