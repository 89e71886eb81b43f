//! The agent's configuration file, `/etc/ztseg/config.yaml`: strict, every key optional.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::datapath::Capacity;
use crate::policy::diagnostic::{Diagnostic, Diagnostics, quote};
use crate::policy::failsafe::{Failsafe, Opening};
use crate::policy::parse::reader::{Context, Fields, Shape};
use crate::policy::parse::selector;
use crate::policy::source::Source;
use crate::policy::yaml::{self, Node, Value};

/// Where the file is, unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/ztseg/config.yaml";
/// The longest path of a Unix socket: `sun_path` with its closing zero is 108 bytes (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// What the agent does with its programs when it stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// They stay and enforce.
    #[default]
    Keep,
    /// They are removed.
    Detach,
}

/// What is enforced where the configured policy cannot be loaded when the agent starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Boot {
    /// Nothing new: the agent does not start.
    #[default]
    Open,
    /// The last good policy; where there is none, all is closed but failsafe and loopback.
    Closed,
}

/// The agent's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the cgroup programs attach; `None` is the cgroup2 mount, wherever that is.
    pub cgroup_root: Option<PathBuf>,
    /// Folder for pins, on a bpffs.
    pub bpffs: PathBuf,
    /// Folder for what the agent keeps.
    pub state_dir: PathBuf,
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// Policy files, and folders of them.
    pub policies: Vec<PathBuf>,
    /// What happens to the programs when the agent stops.
    pub on_exit: OnExit,
    /// What is enforced at the start where the policy is broken.
    pub boot: Boot,
    /// What stays open for the host whatever the policy says.
    pub failsafe: Failsafe,
    /// Ceilings of the maps.
    pub capacity: Capacity,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cgroup_root: None,
            bpffs: "/sys/fs/bpf/ztseg".into(),
            state_dir: "/var/lib/ztseg".into(),
            socket: "/run/ztseg/ztseg.sock".into(),
            policies: vec!["/etc/ztseg/policies".into()],
            on_exit: OnExit::Keep,
            boot: Boot::Open,
            failsafe: Failsafe::default(),
            capacity: Capacity::default(),
        }
    }
}

const SHAPE: Shape = Shape {
    what: "the configuration",
    fields: &[
        "cgroupRoot",
        "bpffs",
        "stateDir",
        "socket",
        "policies",
        "unmanaged",
        "onExit",
        "boot",
        "failsafe",
        "capacity",
    ],
    later: &[
        ("events", "remove it; read events with `ztseg events -f` until then"),
        ("metrics", "remove it; read counters with `ztseg status` until then"),
        ("fleet", "remove it; name members on other machines by `addresses` until then"),
    ],
};

const FAILSAFE: Shape =
    Shape { what: "`failsafe`", fields: &["inbound", "outbound", "units"], later: &[] };

const CAPACITY: Shape =
    Shape { what: "`capacity`", fields: &["flows", "verdicts", "peers", "workloads"], later: &[] };

/// Least and most entries of the maps below `capacity`. Two to the 24th entries of the flow table
/// take some 2 GiB of kernel memory.
const CAPACITY_RANGE: (u32, u32) = (1024, 1 << 24);
/// The same for `capacity.workloads`.
const WORKLOADS_RANGE: (u32, u32) = (64, 1 << 20);

impl Config {
    /// Reads the file's text; an empty file gives the defaults.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_yaml(source: &Source) -> Result<Self, Diagnostics> {
        let mut out = Vec::new();
        let documents = yaml::read(source, 0, &mut out);
        let mut cx = Context { source, out: &mut out };
        let mut config = Self::default();
        match documents.list.as_slice() {
            [] => {}
            [node] => config.read(&mut cx, node),
            [_, second, ..] => {
                let message = "a second document in the configuration";
                cx.error(second.span, message, "write all keys into one document");
            }
        }
        if out.is_empty() {
            Ok(config)
        } else {
            Err(Diagnostics::new(std::slice::from_ref(source), out))
        }
    }

    fn read(&mut self, cx: &mut Context<'_>, node: &Node) {
        let Some(fields) = Fields::read(cx, node, &SHAPE, "keys such as `socket: PATH`") else {
            return;
        };
        if let Some(node) = fields.get("cgroupRoot")
            && !matches!(&node.value, Value::Scalar { text, .. } if text == "auto")
        {
            self.cgroup_root = path(cx, node, "`cgroupRoot`", "`auto`, or `/sys/fs/cgroup`");
        }
        let paths = [
            ("bpffs", &mut self.bpffs),
            ("stateDir", &mut self.state_dir),
            ("socket", &mut self.socket),
        ];
        for (key, value) in paths {
            let Some(node) = fields.get(key) else { continue };
            let example = format!("`{}`", value.display());
            let Some(read) = path(cx, node, &format!("`{key}`"), &example) else { continue };
            if key == "socket" && read.as_os_str().len() > MAX_SOCKET_PATH {
                let n = read.as_os_str().len();
                let message = format!("the path of `socket` has {n} bytes, but may have 107");
                cx.error(
                    node.span,
                    message,
                    "write a shorter path, such as `/run/ztseg/ztseg.sock`",
                );
            }
            *value = read;
        }
        if let Some(node) = fields.get("policies")
            && let Some(items) = cx.list(node, "`policies`", "`[/etc/ztseg/policies]`")
        {
            let read = |n| path(cx, n, "an entry of `policies`", "`/etc/ztseg/policies`");
            self.policies = items.iter().filter_map(read).collect();
        }
        let later = [("unmanaged", "allow", &["audit", "quarantine"][..])];
        for (key, now, later) in later {
            let Some(node) = fields.get(key) else { continue };
            match &node.value {
                Value::Scalar { text, .. } if later.contains(&text.as_str()) => {
                    cx.later(
                        node.span,
                        &format!("`{key}: {text}`"),
                        &format!("write `{key}: {now}`"),
                    );
                }
                _ => {
                    cx.choice(node, &format!("`{key}`"), &[(now, ())]);
                }
            }
        }
        if let Some(node) = fields.get("onExit") {
            let words = [("keep", OnExit::Keep), ("detach", OnExit::Detach)];
            self.on_exit = cx.choice(node, "`onExit`", &words).unwrap_or_default();
        }
        if let Some(node) = fields.get("boot") {
            let words = [("open", Boot::Open), ("closed", Boot::Closed)];
            self.boot = cx.choice(node, "`boot`", &words).unwrap_or_default();
        }
        if let Some(node) = fields.get("failsafe")
            && let Some(fields) = Fields::read(cx, node, &FAILSAFE, "`{ inbound: [\"tcp:22\"] }`")
        {
            let Failsafe { inbound, outbound, units } = &mut self.failsafe;
            for (key, list) in [("inbound", inbound), ("outbound", outbound)] {
                let Some(node) = fields.get(key) else { continue };
                let Some(items) = cx.list(node, &format!("`{key}`"), "`[\"tcp:22\"]`") else {
                    continue;
                };
                *list = items.iter().filter_map(|n| opening(cx, n, key)).collect();
            }
            if let Some(node) = fields.get("units")
                && let Some(items) = cx.list(node, "`units`", "`[ssh.service]`")
            {
                *units = items.iter().filter_map(|n| selector::unit(cx, n)).collect();
            }
        }
        if let Some(node) = fields.get("capacity")
            && let Some(fields) = Fields::read(cx, node, &CAPACITY, "`{ flows: 131072 }`")
        {
            let Capacity { flows, verdicts, peers, workloads } = &mut self.capacity;
            let keys = [
                ("flows", flows, CAPACITY_RANGE),
                ("verdicts", verdicts, CAPACITY_RANGE),
                ("peers", peers, CAPACITY_RANGE),
                ("workloads", workloads, WORKLOADS_RANGE),
            ];
            for (key, value, range) in keys {
                let read = fields.get(key).and_then(|n| number(cx, n, key, *value, range));
                *value = read.unwrap_or(*value);
            }
        }
    }

    /// The settings as a file that gives them.
    pub fn to_yaml(&self) -> String {
        let Self { cgroup_root, bpffs, state_dir, socket, policies, on_exit, .. } = self;
        let Self { boot, failsafe, capacity, .. } = self;
        let boot = match boot {
            Boot::Open => "open",
            Boot::Closed => "closed",
        };
        let root = cgroup_root.as_deref().map_or_else(|| "auto".to_owned(), scalar);
        let policies: Vec<_> = policies.iter().map(|p| scalar(p)).collect();
        let on_exit = match on_exit {
            OnExit::Keep => "keep",
            OnExit::Detach => "detach",
        };
        let openings = |list: &[Opening]| {
            list.iter().map(|o| format!("\"{o}\"")).collect::<Vec<_>>().join(", ")
        };
        let failsafe = format!(
            "{{ inbound: [{}], outbound: [{}], units: [{}] }}",
            openings(&failsafe.inbound),
            openings(&failsafe.outbound),
            failsafe.units.iter().map(|u| quoted(u)).collect::<Vec<_>>().join(", "),
        );
        let Capacity { flows, verdicts, peers, workloads } = capacity;
        let mut out = String::new();
        for (key, value) in [
            ("cgroupRoot", root),
            ("bpffs", scalar(bpffs)),
            ("stateDir", scalar(state_dir)),
            ("socket", scalar(socket)),
            ("policies", format!("[{}]", policies.join(", "))),
            ("unmanaged", "allow".to_owned()),
            ("onExit", on_exit.to_owned()),
            ("boot", boot.to_owned()),
            ("failsafe", failsafe),
        ] {
            // Writing to a string does not fail.
            let _ = writeln!(out, "{key}: {value}");
        }
        let _ = writeln!(
            out,
            "capacity: {{ flows: {flows}, verdicts: {verdicts}, peers: {peers}, workloads: {workloads} }}"
        );
        out
    }
}

/// A path as a scalar; in quotes unless it is made of characters that mean nothing in YAML.
fn scalar(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if text.starts_with('/') && text.chars().all(plain) {
        return text.into_owned();
    }
    quoted(&text)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn opening(cx: &mut Context<'_>, node: &Node, list: &str) -> Option<Opening> {
    let text = cx.text(node, &format!("an entry of `{list}`"), "`\"tcp:22\"`")?;
    match Opening::parse(text.value) {
        Ok(opening) => Some(opening),
        Err(e) => {
            cx.error(text.span, e.message, &e.help);
            None
        }
    }
}

fn path(cx: &mut Context<'_>, node: &Node, what: &str, example: &str) -> Option<PathBuf> {
    let text = cx.text(node, what, example)?;
    if !text.value.starts_with('/') {
        let message = format!("{what} is {}, which is not an absolute path", quote(text.value));
        cx.error(text.span, message, &format!("write {example}"));
        return None;
    }
    Some(PathBuf::from(text.value))
}

fn number(
    cx: &mut Context<'_>,
    node: &Node,
    key: &str,
    default: u32,
    (least, most): (u32, u32),
) -> Option<u32> {
    let text = cx.text(node, &format!("`capacity.{key}`"), &format!("`{default}`"))?.value;
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number: Option<u32> = if digits { text.parse().ok() } else { None };
    let message = match number {
        Some(n) if (least..=most).contains(&n) => return number,
        _ if digits => format!("`capacity.{key}` is {text}, which is out of range"),
        _ => format!("`capacity.{key}` is {}, which is not a number", quote(text)),
    };
    let error = Diagnostic::error(node.span, message);
    cx.out.push(error.help(format!("write {least} to {most}; the default is {default}")));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let source = Source { name: "config.yaml".into(), text: text.into() };
        Config::from_yaml(&source).map_err(|d| d.to_string())
    }

    #[test]
    fn every_key_is_optional() {
        assert_eq!(read(""), Ok(Config::default()));
        assert_eq!(read("# nothing\n---\n"), Ok(Config::default()));
        assert_eq!(read("cgroupRoot: auto\nunmanaged: allow\nboot: open\n"), Ok(Config::default()));
    }

    #[test]
    fn what_is_printed_is_read_again() {
        assert_eq!(read(&Config::default().to_yaml()), Ok(Config::default()));
        let other = Config {
            cgroup_root: Some("/sys/fs/cgroup/it's: here".into()),
            bpffs: "/sys/fs/bpf/other".into(),
            state_dir: "/var/lib/other".into(),
            socket: "/run/other.sock".into(),
            policies: vec!["/etc/a b".into(), "/etc/c".into()],
            on_exit: OnExit::Detach,
            boot: Boot::Closed,
            failsafe: Failsafe {
                inbound: vec![],
                outbound: vec![Opening::parse("tcp:[2001:db8::/32]:443").expect("read")],
                units: vec!["getty@*.service".into()],
            },
            capacity: Capacity { flows: 1024, verdicts: 1 << 24, peers: 2048, workloads: 64 },
        };
        assert_eq!(read(&other.to_yaml()), Ok(other));
    }

    #[test]
    fn bad_settings_are_refused_all_at_once() {
        let text = "\
cgroupRoot: sys/fs/cgroup
sockt: /run/z.sock
policies: /etc/ztseg
unmanaged: quarantine
boot: never
onExit: kep
metrics: { listen: \"127.0.0.1:9479\" }
capacity: { flows: 1023, verdicts: many, peers: 16777217, workloads: -1 }
stateDir: [/var]
";
        let expected = "\
config.yaml:1:13: error: `cgroupRoot` is `sys/fs/cgroup`, which is not an absolute path; write `auto`, or `/sys/fs/cgroup`
config.yaml:2:1: error: unknown field `sockt` in the configuration; did you mean `socket`?
config.yaml:3:11: error: `policies` is a single value, but must be a list; write `[/etc/ztseg/policies]`
config.yaml:4:12: error: `unmanaged: quarantine` is not supported yet by this version of ztseg; write `unmanaged: allow`
config.yaml:5:7: error: `boot` cannot be `never`; write `open` or `closed`
config.yaml:6:9: error: `onExit` cannot be `kep`; did you mean `keep`?
config.yaml:7:1: error: `metrics` in the configuration is not supported yet by this version of ztseg; remove it; read counters with `ztseg status` until then
config.yaml:8:20: error: `capacity.flows` is 1023, which is out of range; write 1024 to 16777216; the default is 131072
config.yaml:8:36: error: `capacity.verdicts` is `many`, which is not a number; write 1024 to 16777216; the default is 65536
config.yaml:8:49: error: `capacity.peers` is 16777217, which is out of range; write 1024 to 16777216; the default is 262144
config.yaml:8:70: error: `capacity.workloads` is `-1`, which is not a number; write 64 to 1048576; the default is 16384
config.yaml:9:11: error: `stateDir` is a list, but must be a single value; write `/var/lib/ztseg`";
        assert_eq!(read(text).expect_err("is refused"), expected);
    }

    #[test]
    fn failsafe_lists_replace_their_defaults_one_by_one() {
        let of = |text: &str| read(text).expect("read").failsafe;
        assert_eq!(of("failsafe: {}\n"), Failsafe::default());
        let some = of("failsafe: { inbound: [tcp:2222, \"udp:[2001:db8::/32]:68\"] }\n");
        let inbound: Vec<_> = some.inbound.iter().map(ToString::to_string).collect();
        assert_eq!(inbound, ["tcp:2222", "udp:[2001:db8::/32]:68"]);
        assert_eq!(some.outbound, Failsafe::default().outbound);
        assert!(of("failsafe: { inbound: [], outbound: [] }\n").is_off());
        assert_eq!(of("failsafe: { units: [] }\n").units, [""; 0]);
        let wrong =
            "failsafe: { inbound: [22, 'tcp:::1:22', tcp:0], units: [ssh], outbuond: [] }\n";
        let expected = "\
config.yaml:1:23: error: `22` is not a port; write the protocol too: `\"tcp:22\"` or `\"udp:22\"`
config.yaml:1:27: error: `tcp:::1:22` is not a port; write IPv6 in brackets: `\"tcp:[2001:db8::/32]:22\"`
config.yaml:1:41: error: port `0` in `tcp:0` is out of range; ports are 1 to 65535
config.yaml:1:57: error: the unit's name `ssh` has no kind; write `ssh.service`
config.yaml:1:63: error: unknown field `outbuond` in `failsafe`; did you mean `outbound`?";
        assert_eq!(read(wrong).expect_err("is refused"), expected);
    }

    #[test]
    fn a_socket_path_must_fit_the_kernel() {
        let path = |n: usize| format!("socket: /{}\n", "s".repeat(n - 1));
        assert!(read(&path(MAX_SOCKET_PATH)).is_ok());
        let found = read(&path(MAX_SOCKET_PATH + 1)).expect_err("is refused");
        assert!(found.contains("has 108 bytes, but may have 107"), "{found}");
    }

    #[test]
    fn one_document_is_enough() {
        let found = read("boot: open\n---\nboot: open\n").expect_err("is refused");
        assert!(found.contains("3:1: error: a second document"), "{found}");
    }
}
