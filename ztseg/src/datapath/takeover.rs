//! Taking over from an agent of another ABI version, without a lost packet and without a gap.
//!
//! 1. The other version decides; this one's programs are attached one by one and stand back.
//! 2. When they are attached everywhere, what they have not seen is copied: who opened which flow.
//! 3. Each decides, for a grace period: both know every flow. Without it, a packet on its way through
//!    both could find the other's turn at each.
//! 4. This version decides, the other stands back and is detached, program by program.
//!
//! An agent that is killed in between leaves one of the first three words behind ([`Turn`]), each of
//! which somebody obeys who is attached everywhere; the next agent, of either version, goes on from
//! there.

use std::io;
use std::path::{Path, PathBuf};

use super::programs::{Pins, kernel};
use super::turn::{Turn, is_attached};
use super::{Datapath, DatapathError, generation, versions};

/// What this version is to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It decides: there is no other, or they stand back.
    Decides,
    /// Another one decides until this one is attached everywhere.
    StandsBack,
    /// Each decides. `may_move`: all heed one word.
    Beside {
        /// Whether one can be made to stand back.
        may_move: bool,
    },
}

/// Finds out who decides, and lets this version stand back where another can go on alone. To be called
/// before anything is attached. Removes other versions that stand back.
pub fn begin(turn: &mut Turn, bpffs: &Path, pins: &Pins) -> io::Result<Stand> {
    let others = versions::others(bpffs, pins)?;
    if others.is_empty() {
        // Also what is left of a takeover that was cut off at its end.
        turn.give_to_each()?;
        return Ok(Stand::Decides);
    }
    let attached = is_attached(&pins.root)?;
    if turn.decides() == turn.own() && attached {
        return Ok(Stand::Decides);
    }
    let mut known: Vec<(PathBuf, u32)> = Vec::new();
    for other in &others {
        if let Some(number) = turn.number_of(other)? {
            known.push((other.clone(), number));
        }
    }
    let named = known.iter().find(|(_, number)| *number == turn.decides());
    // Where each decides and this version is attached, its policy is in force already.
    let only = known.first().filter(|_| others.len() == 1 && turn.decides() == 0 && !attached);
    let Some((decides, number)) = named.or(only) else {
        turn.give_to_each()?;
        let may_move = known.len() == others.len();
        if !may_move {
            tracing::warn!(
                "what an older version left in force cannot stand back, so until it is detached a \
                 packet passes only where both versions let it; some may be lost"
            );
        }
        return Ok(Stand::Beside { may_move });
    };
    turn.give(*number)?;
    for (other, _) in known.iter().filter(|(other, _)| other != decides) {
        versions::retire(other, pins)?;
    }
    Ok(Stand::StandsBack)
}

impl Datapath {
    /// Makes this version the one that decides, once its programs are attached everywhere.
    fn take_over(&mut self) -> Result<(), DatapathError> {
        let doing = |e: anyhow::Error| kernel("taking over from another version", e);
        match self.stand {
            Stand::Decides => return Ok(()),
            Stand::StandsBack => {
                self.carry_flows()?;
                // What was learned by halves is judged again.
                self.next_epoch();
                self.turn.give_to_each().map_err(|e| doing(e.into()))?;
                self.stand = Stand::Beside { may_move: true };
            }
            Stand::Beside { .. } => self.carry_flows()?,
        }
        if self.stand == (Stand::Beside { may_move: true }) {
            self.wait_for_programs().map_err(doing)?;
            self.turn.give(self.turn.own()).map_err(|e| doing(e.into()))?;
            self.stand = Stand::Decides;
            self.wait_for_programs().map_err(doing)?;
        }
        Ok(())
    }

    /// Waits until no program runs that began before.
    fn wait_for_programs(&self) -> anyhow::Result<()> {
        match &self.generation {
            Some(any) => generation::wait_for_grace_period(&self.outer, any),
            None => Ok(()),
        }
    }

    /// Takes over from agents of other ABI versions, and detaches and removes what they left in force; to
    /// be called when this one's programs are attached everywhere. Says what it removed, one line each.
    pub fn retire_others(&mut self) -> Result<Vec<String>, DatapathError> {
        let done = self.take_over().and_then(|()| {
            let failed = |e: anyhow::Error| kernel("removing what another version left", e);
            let others = versions::others(&self.options.bpffs, &self.pins);
            let mut done = Vec::new();
            for other in others.map_err(|e| failed(e.into()))? {
                done.extend(versions::retire(&other, &self.pins).map_err(|e| failed(e.into()))?);
            }
            if !done.is_empty() {
                self.wait_for_programs().map_err(failed)?;
            }
            self.turn.give_to_each().map_err(|e| failed(e.into()))?;
            self.stand = Stand::Decides;
            Ok(done)
        });
        done.inspect_err(|_| self.decide_beside_others())
    }

    /// Ends standing back without taking over: a packet passes where each version lets it. For when this
    /// one cannot be attached everywhere, but its policy is to be in force.
    pub fn decide_beside_others(&mut self) {
        if self.stand == Stand::StandsBack {
            match self.turn.give_to_each() {
                Ok(()) => self.stand = Stand::Beside { may_move: true },
                Err(e) => tracing::error!("the older version still decides alone: {e}"),
            }
        }
    }
}
