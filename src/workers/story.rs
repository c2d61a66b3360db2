//! What happened, as lines of the log.
//!
//! A VM's life is five lines at info: made, ready, job, ended, destroyed. A
//! failure is a warning, said once and then at doubling intervals with a count.

use crate::pool::Millis;
use crate::pool::slot::types::{News, end_text};
use crate::repeats::Repeats;
use crate::text::time;
use log::{Level, error, info, log, warn};

/// Tells what happened. `failures` are those that have been told.
pub(super) fn tell(failures: &mut Repeats, news: Vec<News>, now: Millis) {
    for happened in news {
        match happened {
            News::Made(vm, took) => info!("{vm}: made in {}", time(took)),
            News::Ready(vm, took) => {
                failures.clear(&vm.name);
                info!("{vm}: ready after {}", time(took));
            }
            News::Adopted(vm) => info!("{vm}: adopted"),
            News::Job(vm, job) => info!("{vm}: job {job}"),
            News::JobNamed(vm, job) => info!("{vm}: its job is {job}"),
            News::JobNotTaken(vm) => info!("{vm}: ready again, its job was canceled before it began"),
            News::Retiring(vm, reason) => info!("{vm}: asked to retire, since {}", reason.text()),
            News::Ended { vm, was_ready, cause, job } => {
                let level = if cause.is_failure(job.is_some()) { Level::Warn } else { Level::Info };
                log!(level, "{vm}: {}", end_text(was_ready, &cause, job.as_ref()));
            }
            News::Destroyed(vm, took) => info!("{vm}: destroyed in {}", time(took)),
            News::ClearingAway(vm) => info!("{vm}: belongs to no slot and is destroyed"),
            News::LeftToNextStart(vm) => info!("{vm}: left as it is for the next start"),
            News::JobLost(vm, job) => warn!("{vm}: the host shuts down, and the job on it is lost: {job}"),
            News::Paused(vm) => warn!(
                "{vm}: Hyper-V has paused it, most likely because its volume is full: free space, and it goes on"
            ),
            News::Failed { whose, what, why } => match failures.say(&whose, what, now) {
                Some(1) => warn!("{whose}: {why}"),
                Some(times) => warn!("{whose}: {why} ({times} times since this was last said)"),
                None => {}
            },
            News::Works(whose) => {
                if failures.clear(&whose) {
                    info!("{whose}: works again");
                }
            }
            News::Broken(what) => {
                error!("an invariant does not hold, which is a defect of this program: {what}")
            }
        }
    }
}
