//! The agent: one task owns the state; everything else talks to it through channels.
//!
//! * [`core`]: the state and what may happen to it, without tasks and channels
//! * [`prepare`]: from policy files to an image, pure
//! * [`run`]: the loop around the core
//! * [`handle`]: what the API sees of it
//! * [`host`]: puts it together on a real host
//! * [`enforcer`]: what the core needs of the datapath, so that tests do without a kernel
//! * [`sources`], [`watch`]: policy files, read and watched
//! * [`boot`], [`lastgood`]: which policy an agent begins with
//! * [`telling`]: when local applications are told that they are denied
//! * [`security`]: what somebody altered in the kernel
//! * [`report`], [`limits`]: what `status` and `workloads` show
//!
//! Architecture invariant: a policy is in force whole or not at all. Everything that can fail
//! (read, parse, resolve, compile) happens beside the running policy, and the datapath's commit is
//! the one step that changes it.

pub mod boot;
pub mod core;
pub mod enforcer;
pub mod handle;
pub mod host;
pub mod lastgood;
pub mod limits;
pub mod prepare;
pub mod report;
mod ring;
pub mod run;
pub mod security;
pub mod sources;
mod telling;
pub mod watch;

#[cfg(test)]
mod tests;
