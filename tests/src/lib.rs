//! A small world to show ztseg in: cgroups, network namespaces, traffic, and the agent.
//!
//! * [`world`]: cgroups and namespaces of its own, removed again whatever happens
//! * [`actor`]: a child whose sockets a test leads step by step, and what hears its packets
//! * [`application`]: programs that others wrote
//! * [`policies`]: policies that change under traffic
//! * [`process`]: children in a cgroup and a namespace of the world
//! * [`traffic`]: clients and servers, which this same program is when it is told so
//! * [`agent`]: the real agent, on this world only
//!
//! A program that uses this calls [`tool::dispatch`] first thing in `main`: children in the world
//! are this program again, started with `--tool`.

pub mod actor;
pub mod agent;
pub mod application;
pub mod conformance;
pub mod policies;
pub mod process;
pub mod tool;
pub mod traffic;
pub mod world;
