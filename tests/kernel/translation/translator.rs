//! The tools that translate.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use ztseg_tests::world::{Namespace, World, patient};

use crate::environment::Lacking;

/// How long a tool may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What loads a rule set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Translator {
    /// nft(8).
    Nft,
    /// iptables(8) on top of `nf_tables`.
    IptablesNft,
    /// iptables(8) with its own tables.
    IptablesLegacy,
}

impl Translator {
    pub(crate) const ALL: [Self; 3] = [Self::Nft, Self::IptablesNft, Self::IptablesLegacy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::IptablesNft => "iptables_nft",
            Self::IptablesLegacy => "iptables_legacy",
        }
    }

    /// The program that loads rules for IPv4 or IPv6.
    fn program(self, v6: bool) -> &'static str {
        match (self, v6) {
            (Self::Nft, _) => "nft",
            (Self::IptablesNft, false) => "iptables-nft-restore",
            (Self::IptablesNft, true) => "ip6tables-nft-restore",
            (Self::IptablesLegacy, false) => "iptables-legacy-restore",
            (Self::IptablesLegacy, true) => "ip6tables-legacy-restore",
        }
    }

    /// Loads rules in a namespace, in place of those that this tool has loaded there before.
    pub(crate) fn load(self, world: &World, at: &Namespace, v6: bool, rules: &str) -> Result<()> {
        let program = self.program(v6);
        if !["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(program).exists()) {
            let package = if self == Self::Nft { "nftables" } else { "iptables" };
            let text = format!("{program} of Debian's package {package} is not installed");
            return Err(Lacking(text).into());
        }
        let file = world.folder().join(format!("{}-{v6}.rules", self.name()));
        fs::write(&file, rules)?;
        let file = file.to_string_lossy();
        let args: &[&str] = if self == Self::Nft { &["-f", &file] } else { &["-w", "10", &file] };
        let (status, out, err) =
            at.place().spawn(format!("/usr/sbin/{program}"), args)?.wait(patient(LIMIT))?;
        if status.success() {
            return Ok(());
        }
        // A kernel without the tables, or with a module missing that they need.
        let unknown = ["No such file or directory", "not supported", "does not exist", "No chain/"];
        if unknown.iter().any(|text| err.contains(text)) {
            let first = err.lines().next().unwrap_or_default();
            return Err(Lacking(format!("this kernel cannot be given the rules: {first}")).into());
        }
        bail!("{program}: {status}\n{out}\n{err}\n{rules}");
    }

    /// Removes all rules of this tool from a namespace.
    pub(crate) fn clear(self, world: &World, at: &Namespace, v6: bool) -> Result<()> {
        let rules = if self == Self::Nft { "flush ruleset\n" } else { "*nat\nCOMMIT\n" };
        self.load(world, at, v6, rules)
    }
}
