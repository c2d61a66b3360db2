//! What the pool knows of all its slots together, and what follows from it:
//! which event is for which slot, which slot is to be filled, what is nobody's.
//!
//! Pure, as [`slot`](super::slot) is: every method takes in a fact and answers
//! with the events to send, each with the index of its slot.

use super::demand::Demand;
use super::reconcile::{self, Orphans};
use super::slot::{Assignment, Event, JobNotice, Millis, Phase, View, VmSight};
use crate::github::Runner;
use crate::hypervisor::Inventory;

/// Events, each with the index of the slot that it is for.
pub type Mail = Vec<(usize, Event)>;

/// The pool's knowledge of its slots.
#[derive(Debug)]
pub struct Book {
    size: u32,
    slots: Vec<Page>,
    demand: Demand,
    orphans: Orphans,
}

/// A slot, as the rest of the pool sees it.
#[derive(Debug)]
struct Page {
    view: View,
    /// The slot has been told to make a VM, and has not shown yet that it knows.
    filling: bool,
    /// Since its last failure a slot has come to serve jobs.
    outlived: bool,
    /// Its last failure is over: it was outlived, and no VM was needed here.
    forgiven: bool,
    /// What this VM's guest has told: each is passed on to the slot once.
    fetched: bool,
    /// What it has fetched makes a runner each time it is used, as a registration token does.
    single_use: bool,
    started: bool,
    completed: bool,
}

/// What a guest has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// It fetches its configuration.
    Config,
    /// Its runner starts a job.
    Started,
    /// Its runner has ended.
    Completed,
}

/// What follows from a list of all runners.
#[derive(Debug, Default)]
pub struct RunnerRound {
    /// What the slots are to know.
    pub mail: Mail,
    /// Slots whose runner is not listed, with its id. It has to be asked for by its id.
    pub unlisted: Vec<(usize, u64)>,
    /// Registrations to remove.
    pub orphans: Vec<u64>,
}

impl Book {
    /// For a pool of `size` slots, `warm` of which always have a VM, whose
    /// VMs' names begin with `prefix` and whose runners bear `labels`.
    /// `boot_timeout` in milliseconds.
    pub fn new(prefix: &str, labels: &[String], size: u32, warm: u32, boot_timeout: Millis) -> Book {
        Book {
            size,
            slots: Vec::new(),
            demand: Demand::new(labels, size, warm),
            // Another host's runner of the same prefix may be offline for as long as its VM boots.
            orphans: Orphans::new(prefix, boot_timeout + 60_000),
        }
    }

    /// Adds a slot and answers with its index.
    pub fn add(&mut self, view: View) -> usize {
        self.slots.push(Page {
            view,
            filling: false,
            outlived: false,
            forgiven: false,
            fetched: false,
            single_use: false,
            started: false,
            completed: false,
        });
        self.slots.len() - 1
    }

    /// What is known of each slot.
    pub fn views(&self) -> impl Iterator<Item = &View> {
        self.slots.iter().map(|page| &page.view)
    }

    /// How many queued jobs wait for this pool.
    pub fn jobs_waiting(&self) -> usize {
        self.demand.waiting()
    }

    /// Whether no runner may be taken for this pool's by its name: see [`Orphans::prefix_is_shared`].
    pub fn prefix_is_shared(&self) -> bool {
        self.orphans.prefix_is_shared()
    }

    /// A slot shows what has become of it. Answers with the phase it was in before.
    pub fn publish(&mut self, slot: usize, view: View) -> Phase {
        let page = &mut self.slots[slot];
        let incarnation = |view: &View| view.made.as_ref().map(|made| made.vm.incarnation.clone());
        if incarnation(&page.view) != incarnation(&view) {
            (page.fetched, page.single_use) = (false, false);
            (page.started, page.completed) = (false, false);
        }
        if let Some(id) = view.made.as_ref().and_then(|made| made.runner_id) {
            self.orphans.made(id);
        }
        if view.failures > page.view.failures {
            (page.outlived, page.forgiven) = (false, false);
        }
        let before = page.view.phase;
        page.view = view;
        if page.forgiven {
            page.view.reason = None;
        }
        page.filling &= page.view.phase == Phase::Empty && !page.view.wanted;
        page.view.wanted |= page.filling;
        let serves = matches!(page.view.phase, Phase::Ready | Phase::Running);
        if serves && page.view.phase != before {
            self.slots.iter_mut().for_each(|page| page.outlived = true);
        }
        before
    }

    /// The slots that are to make a VM now.
    pub fn fill(&mut self, now: Millis) -> Mail {
        let views: Vec<&View> = self.slots.iter().map(|page| &page.view).collect();
        let fills = self.demand.fills(&views, now);
        for &slot in &fills {
            self.slots[slot].filling = true;
            self.slots[slot].view.wanted = true;
        }
        // Else a slot that is not needed any more would count as failing for ever.
        for page in &mut self.slots {
            if page.outlived && page.view.phase == Phase::Empty && !page.view.wanted {
                page.forgiven = true;
                page.view.reason = None;
            }
        }
        fills.into_iter().map(|slot| (slot, Event::Fill)).collect()
    }

    /// A guest calls, known by its secret to be slot `slot`'s. `None` if it
    /// may not have its configuration any more.
    pub fn guest_calls(&mut self, slot: usize, call: Call) -> Option<Mail> {
        let page = &mut self.slots[slot];
        let made = page.view.made.as_ref()?;
        let (incarnation, registered) = (made.vm.incarnation.clone(), made.runner_id.is_some());
        let (told, event) = match call {
            Call::Config => {
                let waits = matches!(page.view.phase, Phase::Creating | Phase::Booting | Phase::Ready);
                // A guest that starts again after its job must not become a
                // runner again, even if nobody has heard of the job. GitHub
                // refuses a second runner with a JIT configuration itself.
                let again = page.fetched && page.single_use;
                if !waits || again || page.started || page.completed {
                    return None;
                }
                page.single_use |= !page.fetched && !registered;
                (&mut page.fetched, Event::ConfigFetched { incarnation })
            }
            Call::Started => (&mut page.started, Event::JobStarted { incarnation }),
            Call::Completed => (&mut page.completed, Event::Completed { incarnation }),
        };
        let known = std::mem::replace(told, true);
        Some(if known { Vec::new() } else { vec![(slot, event)] })
    }

    /// A job waits. Answers whether this pool serves it and had not heard of it before.
    pub fn job_queued(&mut self, job_id: u64, labels: &[String], now: Millis) -> bool {
        self.demand.serves(labels) && self.demand.queued(job_id, now)
    }

    /// A runner, of this pool or another, has got a job.
    pub fn job_in_progress(&mut self, notice: JobNotice) -> Mail {
        self.demand.taken(notice.job_id);
        self.slot_of(&notice).map(|slot| (slot, Event::JobInProgress(notice))).into_iter().collect()
    }

    /// A job has ended, wherever it ran.
    pub fn job_completed(&mut self, notice: JobNotice) -> Mail {
        self.demand.taken(notice.job_id);
        self.slot_of(&notice).map(|slot| (slot, Event::JobCompleted(notice))).into_iter().collect()
    }

    /// What an earlier start left, divided among the slots.
    pub fn take_stock(&mut self, inventory: &Inventory, runners: &[Runner]) -> Vec<Assignment> {
        let assignments = reconcile::assign(inventory, runners, self.size);
        let leftovers = assignments.iter().flat_map(|assignment| &assignment.leftovers);
        for runner_id in leftovers.filter_map(|leftover| leftover.runner.as_ref()?.0) {
            self.orphans.made(runner_id);
        }
        assignments
    }

    /// The hypervisor's list, asked for at `asked_at`.
    pub fn vms_listed(&self, inventory: &Inventory, asked_at: Millis) -> Mail {
        let mut mail = Mail::new();
        for (slot, page) in self.slots.iter().enumerate() {
            let Some(made) = &page.view.made else { continue };
            let vm = inventory.vms.iter().find(|vm| vm.id.incarnation == made.vm.incarnation);
            let sight = vm.map_or(VmSight::Missing, |vm| vm.power.into());
            mail.push((
                slot,
                Event::VmObserved { incarnation: made.vm.incarnation.clone(), sight, asked_at },
            ));
        }
        // A slot that has not shown what it was given at the start may have any of them.
        if self.views().any(|view| view.phase == Phase::Unreconciled) {
            return mail;
        }
        let views: Vec<&View> = self.slots.iter().map(|page| &page.view).collect();
        let leftovers = reconcile::leftovers(inventory, &views, self.size);
        mail.extend(leftovers.into_iter().map(|(slot, leftover)| (slot, Event::Leftover(leftover))));
        mail
    }

    /// GitHub's list, asked for at `asked_at`.
    pub fn runners_listed(&mut self, runners: &[Runner], asked_at: Millis, now: Millis) -> RunnerRound {
        let mut mail = Mail::new();
        for runner in runners {
            let slot = self.slots.iter().position(|page| {
                page.view.made.as_ref().is_some_and(|made| match made.runner_id {
                    Some(id) => id == runner.id,
                    None => made.runner_name == runner.name,
                })
            });
            if let Some(slot) = slot {
                let observed = Event::RunnerObserved {
                    runner_id: runner.id,
                    runner_name: runner.name.clone(),
                    online: runner.online,
                    busy: runner.busy,
                    asked_at,
                };
                mail.push((slot, observed));
            }
        }
        let views: Vec<&View> = self.slots.iter().map(|page| &page.view).collect();
        let unlisted = reconcile::unlisted(runners, &views);
        let orphans = self.orphans.find(runners, &views, now);
        RunnerRound { mail, unlisted, orphans }
    }

    /// The slot that a webhook is about, by its runner's id; by the job, once
    /// the slot knows it; by name only while the runner's id is unknown.
    fn slot_of(&self, notice: &JobNotice) -> Option<usize> {
        self.slots.iter().position(|page| {
            page.view.made.as_ref().is_some_and(|made| match made.runner_id {
                Some(id) if notice.runner_id == Some(id) => true,
                None if notice.runner_name.as_ref() == Some(&made.runner_name) => true,
                _ => page.view.job_id == Some(notice.job_id),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::VmId;
    use crate::pool::slot::{Made, Rules, Slot};

    #[test]
    fn nothing_is_a_leftover_while_a_slot_has_not_shown_what_it_was_given() {
        let rules = Rules { boot_timeout: 1, job_timeout: 1, jit: true };
        let mut view = Slot::new(1, "runner-1".into(), rules, 1).view();
        let disk = VmId { name: "runner-1".into(), incarnation: "00ff00ff00ff00ff".into() };
        let inventory = Inventory { vms: Vec::new(), disks: vec![disk] };
        let mut book = Book::new("runner-", &[], 1, 1, 1);
        book.add(view.clone());
        assert!(book.vms_listed(&inventory, 1).is_empty());
        view.phase = Phase::Empty;
        book.publish(0, view);
        assert_eq!(book.vms_listed(&inventory, 2).len(), 1);
    }

    #[test]
    fn a_registration_token_is_given_once_and_a_jit_configuration_until_its_job() {
        for jit in [true, false] {
            let rules = Rules { boot_timeout: 1, job_timeout: 1, jit };
            let mut view = Slot::new(1, "runner-1".into(), rules, 1).view();
            let vm = VmId { name: "runner-1".into(), incarnation: "00ff00ff00ff00ff".into() };
            let mut book = Book::new("runner-", &[], 1, 1, 1);
            book.add(view.clone());
            view.phase = Phase::Booting;
            view.made = Some(Made { vm, runner_name: "runner-1".into(), runner_id: jit.then_some(7) });
            book.publish(0, view.clone());
            assert_eq!(book.guest_calls(0, Call::Config).map(|mail| mail.len()), Some(1));
            // By now GitHub has shown the id of a runner that registered itself.
            view.made.as_mut().unwrap().runner_id = Some(7);
            view.phase = Phase::Ready;
            book.publish(0, view);
            assert_eq!(book.guest_calls(0, Call::Config), jit.then(Vec::new));
            book.guest_calls(0, Call::Started);
            assert_eq!(book.guest_calls(0, Call::Config), None);
        }
    }
}
