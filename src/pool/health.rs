//! Whether the pool serves, and what is wrong if it does not.

use super::Millis;
use super::slot::types::News;

/// How long something may fail before the pool counts as degraded.
pub const PATIENCE: Millis = 5 * 60_000;

/// How GitHub, or the hypervisor, can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Since when it has failed, and why it did so last. Contains details that are for the host's owner only.
    pub failing: Option<(Millis, String)>,
    /// GitHub refuses the token.
    pub refused: bool,
}

impl Reach {
    /// Notes whether a call to `whose` succeeded, and hands on what it brought.
    /// `refused` says whether GitHub refused the token.
    pub fn note<T>(
        &mut self,
        whose: &str,
        answer: Result<T, String>,
        refused: bool,
        now: Millis,
        news: &mut Vec<(Option<u32>, News)>,
    ) -> Option<T> {
        match answer {
            Ok(answer) => {
                if std::mem::take(self).failing.is_some() {
                    news.push((None, News::Works(whose.into())));
                }
                Some(answer)
            }
            Err(why) => {
                let failed = News::Failed { whose: whose.into(), what: "answer", why: why.clone() };
                news.push((None, failed));
                let since = self.failing.as_ref().map_or(now, |(since, _)| *since);
                *self = Reach { failing: Some((since, why)), refused };
                None
            }
        }
    }

    /// Whether it has failed for so long that it matters.
    pub fn is_lost(&self, now: Millis) -> bool {
        self.failing.as_ref().is_some_and(|(since, _)| now - since >= PATIENCE)
    }
}

/// What keeps the pool from serving. The texts say nothing of the host, so that anyone may read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The pool has not been able to look at the host since its start.
    NotRecovered,
    /// The pool stops.
    Stopping,
    /// An operator drains the pool.
    Draining,
    /// GitHub refuses the token.
    TokenRefused,
    /// GitHub has been out of reach for minutes.
    GitHubLost,
    /// The runner scale set is not this pool's to use.
    QueueRefused,
    /// The scale set's queue has been out of reach for minutes.
    QueueLost,
    /// The hypervisor has been out of reach for minutes.
    HypervisorLost,
    /// There is too little free space to make VMs.
    HostFull,
    /// No VM is ready or running although one is wanted.
    NothingServes,
}

impl Trouble {
    /// One sentence.
    pub fn text(self) -> &'static str {
        match self {
            Trouble::NotRecovered => "the pool has not been able to look at the host since it started",
            Trouble::Stopping => "the pool is stopping",
            Trouble::Draining => "the pool is draining: it makes no VMs until it is resumed",
            Trouble::TokenRefused => "GitHub refuses the token",
            Trouble::GitHubLost => "GitHub has been out of reach for minutes",
            Trouble::QueueRefused => "GitHub does not let the pool use its runner scale set",
            Trouble::QueueLost => "the scale set's queue has been out of reach for minutes",
            Trouble::HypervisorLost => "Hyper-V has been out of reach for minutes",
            Trouble::HostFull => "the host has too little free disk space to make VMs",
            Trouble::NothingServes => "no VM is ready or running, although one is wanted",
        }
    }
}

/// The pool's health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What is wrong. Empty when the pool serves.
    pub troubles: Vec<Trouble>,
}

impl Health {
    /// `healthy`, `degraded`, `draining` or `stopping`.
    pub fn name(&self) -> &'static str {
        match self.troubles.as_slice() {
            [] => "healthy",
            troubles if troubles.contains(&Trouble::Stopping) => "stopping",
            troubles if troubles.contains(&Trouble::Draining) => "draining",
            _ => "degraded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_reached_matters_after_five_minutes_and_is_forgotten_when_it_works() {
        let mut reach = Reach::default();
        let mut news = Vec::new();
        for at in [1_000, 200_000] {
            reach.note::<()>("GitHub", Err("no route".into()), false, at, &mut news);
        }
        assert!(!reach.is_lost(PATIENCE + 999));
        assert!(reach.is_lost(PATIENCE + 1_000));
        news.clear();
        for at in [300_000, 300_001] {
            assert_eq!(reach.note("GitHub", Ok(7), false, at, &mut news), Some(7));
        }
        assert_eq!(news, [(None, News::Works("GitHub".into()))]);
        assert!(!reach.is_lost(10 * PATIENCE));
    }
}
