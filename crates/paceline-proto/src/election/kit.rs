//! The kit: made when the owner appoints this session, dropped a while after it is wanted no more.
//!
//! A kit left over from a lost claim is treated as one that nobody wants yet: the next appointment finds it.

use std::time::Duration;

use crate::{
    election::{
        ClaimResult, Effect,
        machine::Core,
        timing::{KIT_KEPT, KIT_RETRY},
    },
    event::Event,
    message::{KitAddress, Rank},
    time::Time,
};

/// The kit as the machine knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kit {
    None,
    Making {
        since: Time,
    },
    /// Ready, and wanted by nobody since `idle`.
    Ready {
        idle: Option<Time>,
        told: Time,
    },
}

impl Core {
    pub(super) fn note_kit(
        &mut self,
        now: Time,
        result: &Result<KitAddress, String>,
        left: bool,
        out: &mut Vec<Effect>,
    ) {
        match result {
            Ok(_) if left => out.push(Effect::DropKit),
            Err(_) if left => {}
            Ok(_) => self.kit = Kit::Ready { idle: None, told: now },
            Err(why) => {
                // `Making` stays, so that the next try waits for its time.
                let epoch = self.highest.next();
                self.report(Event::ClaimFailed { epoch, why: why.clone() }, out);
            }
        }
    }

    /// This session is an heir; `known` = the owner knows its kit.
    pub(super) fn want_kit(&mut self, now: Time, known: bool, out: &mut Vec<Effect>) {
        if self.config.rank == Rank::Observer {
            return;
        }
        let wait = match self.kit {
            Kit::None => Duration::ZERO,
            Kit::Making { since } => KIT_RETRY.saturating_sub(now.since(since)),
            Kit::Ready { idle: Some(_), .. } if !known => Duration::ZERO,
            Kit::Ready { told, .. } if !known => KIT_RETRY.saturating_sub(now.since(told)),
            Kit::Ready { told, .. } => {
                self.kit = Kit::Ready { idle: None, told };
                return;
            }
        };
        if wait.is_zero() {
            self.kit = Kit::Making { since: now };
            out.push(Effect::MakeKit);
        }
    }

    /// This session is no heir.
    pub(super) fn spare_kit(&mut self, now: Time, out: &mut Vec<Effect>) {
        match self.kit {
            Kit::Ready { idle: None, told } => self.kit = Kit::Ready { idle: Some(now), told },
            Kit::Ready { idle: Some(since), .. } if now.since(since) >= KIT_KEPT => {
                self.kit = Kit::None;
                out.push(Effect::DropKit);
            }
            Kit::None | Kit::Making { .. } | Kit::Ready { .. } => {}
        }
    }

    /// A claim was answered: what became of the kit.
    pub(super) fn note_claimed(&mut self, now: Time, result: &ClaimResult) {
        self.kit = match result {
            ClaimResult::Exists => Kit::Ready { idle: Some(now), told: now },
            // Linked, so spent.
            ClaimResult::Won | ClaimResult::Superseded => Kit::None,
            // Perhaps it is still there; the next wish for one finds it.
            ClaimResult::Failed(_) => Kit::None,
        };
    }
}
