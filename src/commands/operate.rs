//! The commands to a running pool.

use super::client::{Client, Error};
use super::{Done, PROGRAM, of_service, print};
use crate::app::Failure;
use crate::service::{self, Command};
use crate::workers::STOP_LIMIT;
use std::thread;
use std::time::{Duration, Instant};

/// How often a command that waits looks again.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long a pool that no longer answers may take to take its file away.
const LAST_STEPS: Duration = Duration::from_secs(5);

pub(super) fn stop(now: bool) -> Done {
    if service::is_running() {
        return of_service(Command::Stop { now });
    }
    let pool = Client::find()?;
    pool.status()?;
    match pool.command(if now { "stop/now" } else { "stop" }) {
        // It can be gone before it has answered.
        Ok(_) | Err(Error::Silent(_)) => {}
        Err(refused) => return Err(refused.into()),
    }
    let deadline = Instant::now() + STOP_LIMIT + Duration::from_secs(30);
    let mut answered = Instant::now();
    while !pool.has_left() && answered.elapsed() < LAST_STEPS {
        if Instant::now() > deadline {
            return Err(Failure::Failed(format!(
                "the pool is still stopping: `{PROGRAM} stop --now` ends it and leaves its VMs to the next start"
            )));
        }
        thread::sleep(LOOK_EVERY);
        if pool.status().is_ok() {
            answered = Instant::now();
        }
    }
    Ok(print("The pool has stopped.\n"))
}
