//! What happened, as lines of the log.
//!
//! A VM's life is five lines at info: made, ready, job, ended, destroyed. A
//! failure is a warning, said once and then at doubling intervals with a count.
//! Each line also has what it is about as fields, for `LOG_FORMAT=json`.

use crate::hypervisor::VmId;
use crate::pool::Millis;
use crate::pool::slot::types::{Job, News, end_text};
use crate::repeats::Repeats;
use crate::text::time;
use log::kv::{self, Source, Value, VisitSource};
use log::{Level, Record};
use std::fmt;

/// What a line is about.
#[derive(Default)]
struct Fields<'a> {
    slot: Option<u32>,
    vm: Option<&'a str>,
    incarnation: Option<&'a str>,
    job: Option<&'a Job>,
    cause: Option<&'a str>,
}

impl Source for Fields<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        let job = self.job;
        let text = |text: Option<&'kvs String>| text.map(Value::from);
        for (name, value) in [
            ("slot", self.slot.map(Value::from)),
            ("vm", self.vm.map(Value::from)),
            ("incarnation", self.incarnation.map(Value::from)),
            ("repository", text(job.and_then(|job| job.repository.as_ref()))),
            ("run", job.and_then(|job| job.run_id).map(Value::from)),
            ("job", text(job.and_then(|job| job.name.as_ref()))),
            ("job_id", job.and_then(|job| job.id).map(Value::from)),
            ("cause", self.cause.map(Value::from)),
        ] {
            if let Some(value) = value {
                visitor.visit_pair(name.into(), value)?;
            }
        }
        Ok(())
    }
}

impl<'a> Fields<'a> {
    /// Of a line about a VM and, if one is known, its job.
    fn new(slot: Option<u32>, vm: &'a VmId, job: Option<&'a Job>) -> Fields<'a> {
        Fields { slot, vm: Some(&vm.name), incarnation: Some(&vm.incarnation), job, cause: None }
    }

    fn say(&self, level: Level, text: fmt::Arguments) {
        if level <= log::max_level() {
            let record =
                Record::builder().level(level).target(module_path!()).args(text).key_values(self).build();
            log::logger().log(&record);
        }
    }
}

/// Tells what happened, each with the number of its slot. `failures` are those that have been told.
pub(super) fn tell(failures: &mut Repeats, news: Vec<(Option<u32>, News)>, now: Millis) {
    use Level::{Error, Info, Warn};
    for (slot, happened) in news {
        let about = |vm| Fields::new(slot, vm, None);
        match &happened {
            News::Made(vm, took) => about(vm).say(Info, format_args!("{vm}: made in {}", time(*took))),
            News::Ready(vm, took) => {
                failures.clear(&vm.name);
                about(vm).say(Info, format_args!("{vm}: ready after {}", time(*took)));
            }
            News::Adopted(vm) => about(vm).say(Info, format_args!("{vm}: adopted")),
            News::Job(vm, job) => {
                Fields::new(slot, vm, Some(job)).say(Info, format_args!("{vm}: job {job}"));
            }
            News::JobNamed(vm, job) => {
                Fields::new(slot, vm, Some(job)).say(Info, format_args!("{vm}: its job is {job}"));
            }
            News::JobNotTaken(vm) => {
                about(vm).say(
                    Info,
                    format_args!("{vm}: ready again, its job was canceled before it began"),
                );
            }
            News::Retiring(vm, reason) => {
                about(vm).say(Info, format_args!("{vm}: asked to retire, since {}", reason.text()));
            }
            News::Ended { vm, was_ready, cause, job, heard } => {
                let fields = Fields::new(slot, vm, job.as_ref().map(|(job, _)| job));
                let text = end_text(*was_ready, cause, job.as_ref());
                let fields = Fields { cause: Some(cause.name()), ..fields };
                if cause.is_failure(job.is_some()) {
                    fields.say(Warn, format_args!("{vm}: {text} ({heard})"));
                } else {
                    fields.say(Info, format_args!("{vm}: {text}"));
                }
            }
            News::Examined(vm, findings) => {
                about(vm).say(Info, format_args!("{vm}: before its end: {findings}"));
            }
            News::Destroyed(vm, took) => {
                about(vm).say(Info, format_args!("{vm}: destroyed in {}", time(*took)));
            }
            News::Kept(vm) => about(vm).say(
                Info,
                format_args!("{vm}: kept for inspection, turned off, as failed-{}", vm.incarnation),
            ),
            News::ClearingAway(vm) => {
                about(vm).say(Info, format_args!("{vm}: belongs to no slot and is destroyed"));
            }
            News::LeftToNextStart(vm) => {
                about(vm).say(Info, format_args!("{vm}: left as it is for the next start"));
            }
            News::JobLost(vm, job) => {
                Fields { cause: Some("host_shutdown"), ..Fields::new(slot, vm, Some(job)) }.say(
                    Warn,
                    format_args!("{vm}: the host shuts down, and the job on it is lost: {job}"),
                );
            }
            News::Paused(vm) => about(vm).say(
                Warn,
                format_args!(
                    "{vm}: Hyper-V has paused it, most likely because its volume is full: free space, and it goes on"
                ),
            ),
            News::Failed { whose, what, why } => {
                let vm = slot.and(Some(whose.as_str()));
                let fields = Fields { slot, vm, cause: Some(what), ..Fields::default() };
                match failures.say(whose, what, now) {
                    Some(1) => fields.say(Warn, format_args!("{whose}: {why}")),
                    Some(times) => fields.say(
                        Warn,
                        format_args!("{whose}: {why} ({times} times since this was last said)"),
                    ),
                    None => {}
                }
            }
            News::Works(whose) => {
                if failures.clear(whose) {
                    Fields { slot, ..Fields::default() }.say(Info, format_args!("{whose}: works again"));
                }
            }
            News::QueueOpened(warnings) => {
                Fields::default().say(Info, format_args!("listening to the scale set's queue"));
                for warning in warnings {
                    Fields::default().say(Warn, format_args!("{warning}"));
                }
            }
            News::Broken(what) => Fields { slot, ..Fields::default() }.say(
                Error,
                format_args!("an invariant does not hold, which is a defect of this program: {what}"),
            ),
        }
    }
}
