//! The command line: one verb a file.
//!
//! Exit status: 0 done, 1 a check found something, 2 wrong usage or input, 3 no agent or no
//! permission.

mod apply;
mod check;
mod completions;
mod detach;
mod diff;
mod events;
mod explain;
mod fmt;
mod lint;
mod man;
mod output;
mod run;
mod schema;
mod settings;
mod status;
mod test;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::api::client::{Client, ClientError};

/// Workload microsegmentation for Linux: segments in YAML, enforced by eBPF.
#[derive(Debug, Parser)]
#[command(name = "ztseg", version, max_term_width = 100)]
#[command(after_help = "Exit status: 0 done, 1 a check found something, 2 wrong usage or input, \
                        3 no agent or no permission.")]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent
    Run(run::Run),
    /// Check policy files and run their tests; needs no agent and no root
    Check(check::Check),
    /// Run the tests of policy files and report every one; needs no agent and no root
    Test(test::Test),
    /// Say which rule decides a flow, and why; offline on files, or on the running agent
    Explain(explain::Explain),
    /// Show which flows change between two policies, or from the one in force
    Diff(diff::Diff),
    /// Warn about policies that load and are most likely not what was meant: rules that decide
    /// nothing, what is open to everybody, what nothing uses
    Lint(lint::Lint),
    /// Write policy files in one form: the order of fields, indentation, quotes; comments stay
    Fmt(fmt::Fmt),
    /// Put a policy in force: the given files, or what is configured, read again
    Apply(apply::Apply),
    /// Show the agent's state, and what it cannot promise on this host
    Status(status::Status),
    /// List this host's workloads and their segments
    Workloads(workloads::Workloads),
    /// Show denials and other events
    Events(events::Events),
    /// Remove ztseg's programs and maps from the kernel; no policy is enforced afterwards
    Detach(detach::Detach),
    /// Print completions for a shell
    Completions(completions::Completions),
    /// Print the JSON Schema of policy files, for editors that complete and check them
    Schema(schema::Schema),
    /// Print the manual page, or write all of them into a folder
    Man(man::Man),
}

/// Where the agent is.
#[derive(Debug, Args)]
struct Agent {
    /// The agent's socket
    #[arg(long, env = "ZTSEG_SOCKET", default_value = "/run/ztseg/ztseg.sock")]
    socket: PathBuf,
}

impl Agent {
    fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

/// Why a verb did not do what it should: an exit status, and text for people.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    /// Printed as it is; empty where everything has been said.
    text: String,
}

impl Failure {
    /// A check found something.
    fn found(text: impl Into<String>) -> Self {
        Self { status: 1, text: text.into() }
    }

    /// Wrong usage or input.
    fn input(text: impl Into<String>) -> Self {
        Self { status: 2, text: text.into() }
    }

    /// No agent or no permission.
    fn refused(text: impl Into<String>) -> Self {
        Self { status: 3, text: text.into() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::Refused(_) => Self::input(text),
            ClientError::NoAgent { .. }
            | ClientError::NoPermission(_)
            | ClientError::Forbidden(_)
            | ClientError::Broken { .. } => Self::refused(text),
        }
    }
}

/// Parses the arguments, runs the verb, and gives the exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Run(verb) => verb.execute(),
        Verb::Check(verb) => verb.execute(),
        Verb::Test(verb) => verb.execute(),
        Verb::Explain(verb) => block_on(verb.execute()),
        Verb::Diff(verb) => block_on(verb.execute()),
        Verb::Lint(verb) => verb.execute(),
        Verb::Fmt(verb) => verb.execute(),
        Verb::Apply(verb) => block_on(verb.execute()),
        Verb::Status(verb) => block_on(verb.execute()),
        Verb::Workloads(verb) => block_on(verb.execute()),
        Verb::Events(verb) => block_on(verb.execute()),
        Verb::Detach(verb) => block_on(verb.execute()),
        Verb::Completions(verb) => verb.execute(),
        Verb::Schema(verb) => verb.execute(),
        Verb::Man(verb) => verb.execute(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, text }) => {
            output::error(&text);
            ExitCode::from(status)
        }
    }
}

/// Runs a client verb.
fn block_on(verb: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::refused(format!("no runtime: {e}")))?.block_on(verb)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_a_line_of_help() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
        }
    }

    #[test]
    fn a_refused_policy_is_wrong_input_and_a_missing_agent_is_no_agent() {
        assert_eq!(Failure::from(ClientError::Refused(String::new())).status, 2);
        assert_eq!(Failure::from(ClientError::NoPermission("/x".into())).status, 3);
        assert_eq!(Failure::from(ClientError::Forbidden(String::new())).status, 3);
    }
}
