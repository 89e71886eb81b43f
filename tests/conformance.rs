//! Cases of Kubernetes' policies that others wrote, with what they expect of every probe.
//!
//! They lie beside the repository; where they are missing, these tests are skipped. Each probe is asked
//! of the evaluator over the compiled image and of the oracle.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::Value;
use ztseg::datapath::Capacity;
use ztseg::image::Image;
use ztseg::judge::{End, EndJudgement, Flow, judge};
use ztseg::policy::compile::compile;
use ztseg::policy::diagnostic::Diagnostics;
use ztseg::policy::kubernetes::placed::memberships;
use ztseg::policy::oracle::{self, PeerFacts};
use ztseg::policy::{Loaded, load};
use ztseg_common::verdict::{Direction, Verdict};
use ztseg_tests::conformance::{
    address, folder, is_asked, list, read, service, source, sources, text,
};

/// How many wrong probes of a suite are shown.
const SHOWN: usize = 10;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = match folder() {
        Ok(folder) => trials(&folder),
        Err(reason) => {
            let absent = move || Ok(Completion::ignored_with(reason));
            vec![Trial::ignorable_test("cases", absent)]
        }
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trials(folder: &Path) -> Vec<Trial> {
    let mut suites: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for case in read(&folder.join("cases.jsonl")) {
        suites.entry(text(&case, "suite").to_owned()).or_default().push(case);
    }
    let suite = |(name, cases): (String, Vec<Value>)| {
        Trial::test(format!("cases_{name}"), move || all_probes(&name, &cases))
    };
    let invalid = folder.join("invalid.jsonl");
    let invalid = Trial::test("invalid", move || all_refused(&read(&invalid)));
    suites.into_iter().map(suite).chain([invalid]).collect()
}

/// A case, ready to be asked.
struct Ready<'v> {
    case: &'v Value,
    loaded: Loaded,
    image: Image,
}

impl<'v> Ready<'v> {
    fn new(case: &'v Value) -> Result<Self, String> {
        let shown = |found: Diagnostics| found.render(false);
        let loaded = load(&sources(case)).map_err(shown)?;
        let image = compile(&loaded.resolved, &memberships(&loaded.pods), &Capacity::default())
            .map_err(|error| error.to_string())?;
        Ok(Self { case, loaded, image })
    }

    /// `ns/pod`, `ext:NAME` or `node:NAME`.
    fn end(&self, name: &str) -> End {
        let outside = |list_name: &str, name: &str| {
            let mut all = list(self.case, list_name).iter();
            let found = all.find(|e| text(e, "name") == name).expect("is there");
            End::address(address(found))
        };
        if let Some(name) = name.strip_prefix("ext:") {
            return outside("externals", name);
        }
        if let Some(name) = name.strip_prefix("node:") {
            return outside("nodes", name);
        }
        let (namespace, name) = name.split_once('/').expect("ns/pod");
        let mut pods = self.loaded.pods.iter();
        let pod = pods.find(|p| p.namespace == namespace && p.name == name).expect("is there");
        // No case has pods of two families.
        pod.end(pod.addresses.first().is_none_or(IpAddr::is_ipv4))
    }

    /// What is wrong with the answers to a probe.
    fn wrong(&self, probe: &Value) -> Option<String> {
        let (protocol, port) = service(probe);
        let (from, to) = (self.end(text(probe, "from")), self.end(text(probe, "to")));
        let flow = Flow { from, to, protocol, port };
        let now = Timestamp::UNIX_EPOCH;
        let judgement = judge(&self.loaded.resolved, &self.image, now, &flow).expect("has classes");
        let allows =
            |end: Option<&EndJudgement<'_>>| end.map(|e| e.decision.verdict == Verdict::Allow);
        let found = (allows(judgement.egress.as_ref()), allows(judgement.ingress.as_ref()));
        let oracle = (
            self.oracle(&flow.from, &flow.to, Direction::Egress, &flow),
            self.oracle(&flow.to, &flow.from, Direction::Ingress, &flow),
        );
        let expected = |key: &str| probe.get(key).and_then(Value::as_str).map(|v| v == "allow");
        let overall = judgement.verdict() == Verdict::Allow;
        let agrees = |found: Option<bool>, key| {
            found.zip(expected(key)).is_none_or(|(found, expected)| found == expected)
        };
        let right = expected("expect") == Some(overall)
            && agrees(found.0, "egress")
            && agrees(found.1, "ingress")
            && oracle == found;
        (!right).then(|| {
            let ends: Vec<_> = judgement.ends().map(ToString::to_string).collect();
            format!("{probe}\n  found {}; the oracle {oracle:?}", ends.join("; "))
        })
    }

    fn oracle(&self, subject: &End, peer: &End, direction: Direction, flow: &Flow) -> Option<bool> {
        let resolved = &self.loaded.resolved;
        let address = peer.address.expect("every end has one");
        let facts = PeerFacts { known: peer.workload.clone(), nobody: false, address };
        let segments = subject.workload.as_ref()?;
        let (protocol, port) = (flow.protocol, flow.port);
        Some(oracle::decide(resolved, segments, &facts, direction, protocol, port).allow)
    }
}

fn all_probes(suite: &str, cases: &[Value]) -> Result<(), Failed> {
    let (mut right, mut skipped) = (0, 0);
    let mut wrong = Vec::new();
    for case in cases {
        let name = text(case, "name");
        let ready = match Ready::new(case) {
            Ok(ready) => ready,
            Err(error) => {
                wrong.push(format!("{name} is refused:\n{error}"));
                continue;
            }
        };
        for probe in list(case, "probes") {
            if !is_asked(probe) {
                skipped += 1;
                continue;
            }
            match ready.wrong(probe) {
                None => right += 1,
                Some(what) => wrong.push(format!("{name}: {what}")),
            }
        }
    }
    let asked = right + wrong.len();
    println!(
        "{suite}: {right} of {asked} probes right in {} states, {skipped} left out",
        cases.len()
    );
    if wrong.is_empty() && right > 0 {
        return Ok(());
    }
    let mut message = format!("{} of {asked} probes are wrong", wrong.len());
    for what in wrong.iter().take(SHOWN) {
        let _ = write!(message, "\n{what}");
    }
    Err(message.into())
}

fn all_refused(sets: &[Value]) -> Result<(), Failed> {
    let mut taken = Vec::new();
    for set in sets {
        let name = text(set, "name");
        match load(&[source("policies", list(set, "policies").iter().cloned())]) {
            Ok(_) => taken.push(format!("{name}: {}", text(set, "reason"))),
            Err(found) => {
                let first = found.iter().next().map_or_else(String::new, |d| found.line(d));
                println!("{name}: {} — {first}", text(set, "reason"));
            }
        }
    }
    println!("invalid: {} of {} sets refused", sets.len() - taken.len(), sets.len());
    if taken.is_empty() { Ok(()) } else { Err(taken.join("\n").into()) }
}
