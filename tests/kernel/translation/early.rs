//! The early answer at `connect` and `sendmsg` denies nothing that the packet hook would let pass,
//! from the moment on that a rule is loaded.

use anyhow::{Result, ensure};
use ztseg_tests::agent::Agent;
use ztseg_tests::traffic::Outcome;

use super::Translator;
use super::rules::kube_proxy;
use super::services::{ASKS, OPEN, POLICY, Scene, ask, virtual_address};
use crate::Body;
use crate::environment::{Environment, Lacking};

pub(super) const TESTS: &[(&str, Body)] = &[
    ("translation::early_answers_end_with_the_first_rule", first_rule),
    ("translation::early_answers_end_without_an_agent", without_an_agent),
];

/// No interface is a workload, since early answers beyond loopback are off while one is.
fn policy() -> String {
    POLICY.lines().filter(|line| !line.contains("vm")).collect::<Vec<_>>().join("\n")
}

fn load(translator: Translator, scene: &Scene) -> Result<()> {
    for v6 in [false, true] {
        let rules = kube_proxy(translator, &scene.services(v6, false));
        translator.load(&scene.world, &scene.world.host, v6, &rules)?;
    }
    Ok(())
}

/// The services that lead to a local workload and to the other host.
const SERVICES: [u8; 2] = [1, 3];

fn every_way(scene: &Scene, expected: Outcome, when: &str) -> Result<()> {
    for v6 in [false, true] {
        for n in SERVICES {
            for how in ASKS {
                let outcome = ask(how, &scene.web, (virtual_address(n, v6), OPEN).into())?;
                ensure!(outcome == expected, "{how:?}, service {n}, v6 {v6}, {when}: {outcome:?}");
            }
        }
    }
    Ok(())
}

fn first_rule(_: &Environment) -> Result<()> {
    let mut seen = false;
    for translator in Translator::ALL {
        // A namespace of its own each: a table of iptables-legacy stays.
        let scene = Scene::new()?;
        let mut agent = Agent::start(&scene.world, &policy())?;
        let _servers = scene.serve()?;
        // No rule of the policy names the services' addresses.
        every_way(&scene, Outcome::Eperm, "before there is a rule")?;
        let event = agent.wait_for_event(|event| event["hook"] == "connect4")?;
        ensure!(event["comm"].is_string(), "an early answer names the process: {event:#}");
        for round in 0..3 {
            match load(translator, &scene) {
                Err(error) if error.is::<Lacking>() => {
                    println!("{}: {error:#}", translator.name());
                    break;
                }
                loaded => loaded?,
            }
            seen = true;
            every_way(&scene, Outcome::Ok, &format!("{}, round {round}", translator.name()))?;
            if translator == Translator::IptablesLegacy {
                break;
            }
            for v6 in [false, true] {
                translator.clear(&scene.world, &scene.world.host, v6)?;
            }
        }
        agent.stop()?;
    }
    ensure!(seen, Lacking("no tool for translation can be used here".to_owned()));
    Ok(())
}

fn without_an_agent(_: &Environment) -> Result<()> {
    let scene = Scene::new()?;
    load(Translator::Nft, &scene)?;
    for v6 in [false, true] {
        Translator::Nft.clear(&scene.world, &scene.world.host, v6)?;
    }
    let mut agent = Agent::start(&scene.world, &policy())?;
    let _servers = scene.serve()?;
    every_way(&scene, Outcome::Eperm, "before there is a rule")?;
    agent.kill9();
    load(Translator::Nft, &scene)?;
    every_way(&scene, Outcome::Ok, "without an agent")
}
