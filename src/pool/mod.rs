//! What decides: no thread, no lock, no I/O and no clock of its own.
//!
//! [`state::PoolState`] holds every slot's record and is the only way to
//! change one. [`monitor::Monitor`] says what to ask the host and GitHub next.
//! `workers` performs what they ask for, and feeds back what came of it; the
//! simulator of the tests does the same without threads, through years of
//! faults in seconds.
//!
//! | file | what it decides |
//! |---|---|
//! | [`state`] | what an event means for which slot, and which slot makes a VM |
//! | [`slot`] | what happens to one VM, from its registration to its end |
//! | [`slot::evidence`] | when a VM's runner is dead, and when its job was never taken |
//! | [`policy`] | how many VMs there should be, and which idle ones retire |
//! | [`demand`] | which queued jobs count |
//! | [`queue`] | what to ask a scale set's queue, and what its messages mean |
//! | [`monitor`] | what to look at next, and what to conclude from it |
//! | [`observed`] | what lists of VMs and runners mean for the slots |
//! | [`recovery`] | what a starting pool does with what it finds |
//! | [`orphans`] | which VMs and registrations belong to no slot |
//! | [`operator`] | what drain, resume and recycle mean |
//! | [`health`] | whether the pool serves, and what is wrong if not |
//! | [`history`] | what is counted and remembered of the past |
//! | [`image_age`] | when a template is too old |
//! | [`back_off`] | how long to wait before a retry |

pub mod back_off;
pub mod demand;
pub mod health;
pub mod history;
pub mod image_age;
pub mod monitor;
pub mod observed;
pub mod operator;
pub mod orphans;
pub mod policy;
pub mod queue;
pub mod recovery;
#[cfg(test)]
mod scenarios;
pub mod slot;
pub mod state;

use crate::config::{GitHubConfig, Intake, PoolConfig, RegistrationMode};
use crate::github::scope::Scope;
use crate::secret::Secret;
use health::{Health, Reach};
use history::Tally;
use queue::QueueReport;
use slot::types::{Phase, SlotSnapshot};
use std::time::{Duration, SystemTime};

/// Milliseconds on a clock that never goes back. Where it starts does not matter.
pub type Millis = i64;

/// A duration in milliseconds.
pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// When that was, by the pool's clock, which shows `now` at the time `utc`.
pub fn wall_time(at: Millis, now: Millis, utc: SystemTime) -> SystemTime {
    let ago = Duration::from_millis(u64::try_from(now - at).unwrap_or(0));
    utc.checked_sub(ago).unwrap_or(utc)
}

/// What the pool goes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The pool's part of the configuration.
    pub pool: PoolConfig,
    /// The runners' labels, in lower case.
    labels: Vec<String>,
    /// Whether a job without labels can be this pool's: only one for its own runner group.
    serves_unlabeled: bool,
    /// Whether GitHub makes the registration (JIT). Otherwise the runner registers itself.
    jit: bool,
    /// The pool's tag, 8 hex digits: how each incarnation begins.
    pub tag: String,
    /// Where new runners are registered.
    pub scope: Scope,
    /// How the pool learns of queued jobs.
    pub intake: Intake,
}

impl Rules {
    /// From the configuration and the pool's tag.
    pub fn new(pool: &PoolConfig, github: &GitHubConfig, tag: String) -> Rules {
        Rules {
            pool: pool.clone(),
            labels: github.labels.iter().map(|label| label.to_lowercase()).collect(),
            serves_unlabeled: github.repo.is_none() && !github.runner_group.eq_ignore_ascii_case("Default"),
            jit: github.registration == RegistrationMode::Jit,
            tag,
            scope: github.scope(),
            intake: github.intake,
        }
    }

    /// Whether a job that asks for these labels can run here: every one of
    /// them must be one of the runners', whatever its case. A job without
    /// labels asks for a runner group alone.
    pub fn serves(&self, labels: &[String]) -> bool {
        (self.serves_unlabeled || !labels.is_empty())
            && labels.iter().all(|label| self.labels.contains(&label.to_lowercase()))
    }

    /// Whether a runner of this name was registered by this pool: the name
    /// ends in an incarnation, and that begins with the pool's tag.
    pub fn owns_runner(&self, name: &str) -> bool {
        name.rsplit_once('-').is_some_and(|(_, incarnation)| {
            incarnation.len() == 16
                && incarnation.starts_with(&self.tag)
                && incarnation.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    }

    pub(crate) fn boot_timeout(&self) -> Millis {
        millis(self.pool.boot_timeout)
    }

    pub(crate) fn job_timeout(&self) -> Millis {
        millis(self.pool.job_timeout)
    }
}

/// Why a guest's request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pool has no VM of that name.
    NotFound,
    /// The proof is missing, or not this VM's.
    Unauthorized,
    /// It gets no second configuration: a job runs or has run on it, it was
    /// answered already (with a registration token), or an earlier start made it.
    Answered,
    /// The pool does not know its VMs yet, or this one's creation has not ended. Worth a retry.
    NotReady,
}

/// What a guest needs to start its runner.
#[derive(Debug)]
pub struct RunnerConfig {
    /// The name under which the runner is, or is to be, registered.
    pub runner_name: String,
    /// The registration token. Empty with a JIT configuration, which the VM has in its key-values.
    pub token: Secret,
}

/// The pool at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The slots in order, those past the pool's size last.
    pub slots: Vec<SlotSnapshot>,
    /// `POOL_SIZE`.
    pub size: u32,
    /// Queued jobs that this pool serves and no runner has.
    pub jobs_waiting: usize,
    /// Whether the pool serves.
    pub health: Health,
    /// How GitHub can be reached.
    pub github: Reach,
    /// How the hypervisor can be reached.
    pub hypervisor: Reach,
    /// The scale set's queue, if that is how the pool learns of jobs.
    pub queue: Option<QueueReport>,
    /// What has been counted since the start.
    pub tally: Tally,
    /// Free bytes on the storage folder's volume, by the last list.
    pub free_bytes: Option<u64>,
    /// `MIN_FREE_GB` in bytes.
    pub min_free_bytes: u64,
    /// The pool's clock at this moment, to which every `since` belongs.
    pub now: Millis,
}

impl Snapshot {
    /// How many slots are in this phase.
    pub fn count(&self, phase: Phase) -> usize {
        self.slots.iter().filter(|slot| slot.phase == phase).count()
    }

    /// How many slots have, are making, or are destroying a VM.
    pub fn vms(&self) -> usize {
        use Phase::{Booting, Creating, Destroying, Ready, Running};
        [Creating, Booting, Ready, Running, Destroying].iter().map(|&phase| self.count(phase)).sum()
    }

    /// The slots that fail: whose last try failed, and that do not serve.
    pub fn failing(&self) -> impl Iterator<Item = &SlotSnapshot> {
        let serves = |slot: &SlotSnapshot| matches!(slot.phase, Phase::Ready | Phase::Running);
        self.slots.iter().filter(move |slot| slot.reason.is_some() && !serves(slot))
    }

    /// Jobs that the pool has seen to their end.
    pub fn jobs_completed(&self) -> u64 {
        self.slots.iter().map(|slot| slot.jobs_completed).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Source;
    use crate::hypervisor::{Heartbeat, Notes, Power, Vm, VmId};

    pub fn rules(size: u32, warm: u32) -> Rules {
        let usual = Source::new([], std::env::temp_dir()).load_with(b"USE_MOCK=true").unwrap().config;
        let labels = vec!["self-hosted".into(), "Windows".into()];
        let github = GitHubConfig { org: "octo".into(), labels, ..usual.github };
        let pool = PoolConfig { size, warm, max_concurrent_creates: size.max(2), ..usual.pool };
        Rules::new(&pool, &github, "7a9e0001".into())
    }

    pub fn notes(slot: u32) -> Notes {
        let incarnation = format!("7a9e0001{slot:08x}");
        Notes {
            pool: "pool".into(),
            slot,
            runner_name: format!("runner-{slot}-{incarnation}"),
            incarnation,
            scope: rules(1, 1).scope,
            runner_id: Some(u64::from(slot)),
            fingerprint: Some("f".into()),
            created: 0,
            job_started: None,
        }
    }

    pub fn vm(slot: u32, power: Power) -> Vm {
        let notes = notes(slot);
        Vm {
            id: VmId { name: format!("runner-{slot}"), incarnation: notes.incarnation.clone() },
            power,
            uptime: Duration::from_secs(60),
            heartbeat: Heartbeat::Unknown,
            guest: None,
            holds_jit_config: None,
            notes: Some(notes),
        }
    }

    #[test]
    fn labels_are_compared_without_case_and_all_must_be_served() {
        let rules = rules(1, 1);
        assert!(rules.serves(&["WINDOWS".into(), "self-hosted".into()]));
        assert!(!rules.serves(&["self-hosted".into(), "gpu".into()]));
    }

    #[test]
    fn a_job_without_labels_is_served_only_by_a_pool_with_a_runner_group_of_its_own() {
        let mut rules = rules(1, 1);
        assert!(!rules.serves(&[]));
        rules.serves_unlabeled = true;
        assert!(rules.serves(&[]));
    }

    #[test]
    fn the_tag_in_its_name_says_whose_a_registration_is() {
        let rules = rules(1, 1);
        assert!(rules.owns_runner("runner-1-7a9e0001000000ff"));
        assert!(rules.owns_runner("another-prefix-9-7a9e0001000000ff"));
        for foreign in ["runner-1", "runner-1-7a9e0002000000ff", "runner-1-7a9e0001", "7a9e0001000000ff"] {
            assert!(!rules.owns_runner(foreign), "{foreign}");
        }
    }
}
