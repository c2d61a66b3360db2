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

/// How long a pool may be silent until a command no longer waits for it.
const SILENCE: Duration = Duration::from_secs(60);

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

/// Gives a command, and prints what the pool says to it.
pub(super) fn command(command: &str) -> Done {
    Ok(print(&format!("{}\n", Client::find()?.command(command)?)))
}

pub(super) fn recycle(vm: Option<&str>) -> Done {
    match vm {
        None => command("recycle"),
        // What is in no VM's name has no place in a path either.
        Some(vm) if vm.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) => {
            command(&format!("recycle/{vm}"))
        }
        Some(vm) => {
            Err(Failure::Refused(format!("{vm:?} is no VM of a pool: `{PROGRAM} status` names them")))
        }
    }
}

pub(super) fn drain(wait: bool) -> Done {
    let pool = Client::find()?;
    let said = print(&format!("{}\n", pool.command("drain")?));
    if !wait {
        return Ok(said);
    }
    let mut answered = Instant::now();
    let mut told = String::new();
    loop {
        thread::sleep(LOOK_EVERY);
        let status = match pool.status() {
            Ok(status) => status,
            Err(_) if pool.has_left() => {
                return Err(Failure::Failed("the pool has stopped, and its VMs with a job go on".into()));
            }
            Err(Error::Silent(_)) if answered.elapsed() < SILENCE => continue,
            Err(why) => return Err(why.into()),
        };
        answered = Instant::now();
        if status["status"] != "draining" {
            return Err(Failure::Failed("the drain was ended: the pool makes VMs again, or stops".into()));
        }
        let count = |state: &str| status[state].as_u64().unwrap_or(0);
        let idle = ["recovering", "creating", "booting", "ready"].map(count).iter().sum::<u64>();
        let jobs = count("running");
        if idle + jobs == 0 {
            return Ok(print("No VM has a job, and none will get one.\n"));
        }
        let left = format!("VMs with a job: {jobs}; without: {idle}\n");
        if left != told {
            print(&left);
            told = left;
        }
    }
}
