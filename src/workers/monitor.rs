//! The thread of the monitor: asks what [`Monitor`] wants to know.

use super::{Shared, random_seed};
use crate::date;
use crate::pool::Millis;
use crate::pool::monitor::{Answer, Ask, Monitor};
use log::{info, warn};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// However often a look is asked for, so much time lies between two.
const LEAST_BETWEEN: Duration = Duration::from_millis(500);

/// How often what is about to be too old is warned of.
const AGE_WARNINGS_EVERY: Duration = Duration::from_secs(24 * 3600);

/// How long before the token expires the pool begins to warn.
const TOKEN_WARNING: Duration = Duration::from_secs(14 * 24 * 3600);

/// Starts the thread. It ends when every slot has stopped, or with the process.
pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("monitor".into()).stack_size(512 * 1024);
    thread.spawn(move || run(&shared)).map(|_| ())
}

fn run(shared: &Arc<Shared>) {
    let mut monitor = Monitor::new(random_seed());
    let mut answer = Answer::Paused;
    let mut warned: Option<Instant> = None;
    loop {
        let ask = shared.apply(|state| monitor.next(answer, state));
        answer = match ask {
            Ask::Vms(writes) => Answer::Vms(
                shared
                    .hypervisor
                    .list(&writes)
                    .map(|inventory| (inventory, shared.fingerprint()))
                    .map_err(|error| error.to_string()),
            ),
            Ask::Runners => Answer::Runners(shared.github.runners()),
            Ask::Runner(asked) => Answer::Runner(shared.github.runner_by_id(&asked.scope, asked.id)),
            Ask::Remove(id) => {
                let removal = shared.github.remove(shared.github.scope(), id);
                if removal.is_ok() {
                    info!("runner {id}, whose VM is gone, is removed from GitHub");
                }
                Answer::Removed(removal)
            }
            Ask::QueuedJobs => Answer::QueuedJobs(shared.github.queued_jobs()),
            Ask::NewestRunner => Answer::NewestRunner(shared.github.newest_runner_version(), date::today()),
            Ask::Pause(wait) => {
                if warned.is_none_or(|at| at.elapsed() >= AGE_WARNINGS_EVERY) {
                    warned = Some(Instant::now());
                    warn_of_age(shared);
                }
                pause(shared, wait);
                Answer::Paused
            }
            Ask::End => return,
        };
    }
}

/// Waits, or less if a look is asked for.
fn pause(shared: &Shared, wait: Millis) {
    let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
    let least = wait.min(LEAST_BETWEEN);
    std::thread::sleep(least);
    let (mut inner, _) = shared
        .look
        .wait_timeout_while(shared.lock(), wait - least, |inner| !inner.look_now)
        .unwrap_or_else(PoisonError::into_inner);
    inner.look_now = false;
}

/// Says what is about to be too old: the image, and the token.
fn warn_of_age(shared: &Shared) {
    let report = shared.lock().state.image.report(date::today());
    report.warnings.iter().for_each(|warning| warn!("{warning}"));
    let left = shared.github.token_expires().map(|at| at.duration_since(std::time::SystemTime::now()));
    match left {
        Some(Ok(left)) if left <= TOKEN_WARNING => warn!(
            "the token in GITHUB_PAT expires in {} days: put a new one into .env, no restart is needed",
            left.as_secs() / 86_400
        ),
        Some(Err(_)) => {
            warn!("the token in GITHUB_PAT has expired: put a new one into .env, no restart is needed")
        }
        _ => {}
    }
}
