//! The pool under simulated faults: a few hundred seeds hold all invariants, a
//! seed replays exactly, and a fault planted in the pool's world is caught as
//! the violation that it is.
//!
//! `cargo run --release --example simulate` runs as many seeds as wanted.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod simulator;

use simulator::plan::{Config, DAY, FAULTS, Fault, HOUR, MINUTE, Plan, SECOND};
use simulator::{Bug, Options, Report, run};
use std::thread;

/// Runs seeds on a few threads and sums their reports up.
fn run_seeds(seeds: std::ops::Range<u64>) -> Report {
    let parts = 4;
    let runs: Vec<_> = (0..parts)
        .map(|part| {
            let seeds = seeds.clone();
            thread::spawn(move || {
                let mut total = Report::default();
                for seed in seeds.filter(|seed| seed % parts == part) {
                    let (report, violation) = run(Options::seed(seed));
                    if let Some(violation) = violation {
                        panic!(
                            "{violation}\nreplay: cargo run --example simulate -- --first-seed {seed} --seeds 1 --trace"
                        );
                    }
                    total.add(&report);
                }
                total
            })
        })
        .collect();
    let mut total = Report::default();
    for run in runs {
        total.add(&run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    }
    total
}

#[test]
fn no_invariant_breaks_and_the_pool_is_whole_again_after_the_faults() {
    let report = run_seeds(0..200);
    assert!(report.jobs_completed > 10_000, "{report:?}");
    // Seeds without a single fault of some kind would show nothing about it.
    let missing: Vec<_> = report.faults_by_kind().filter(|(_, count)| *count == 0).collect();
    assert!(missing.is_empty(), "never injected: {missing:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..20 {
        assert_eq!(run(Options::seed(seed)), run(Options::seed(seed)));
    }
}

#[test]
fn idle_rounds_of_the_monitor_can_be_skipped() {
    for skip_idle in [false, true] {
        let plan = Plan { length: 3 * DAY, skip_idle, ..Plan::year() };
        let (report, violation) = run(Options { plan: Some(plan), ..Options::seed(1) });
        assert_eq!(violation, None);
        assert!(report.jobs_completed > 100, "{report:?}");
    }
}

#[test]
fn without_faults_every_job_is_completed_and_nothing_waits_long() {
    for (seed, warm) in (0..10).zip([4, 0, 1].into_iter().cycle()) {
        let plan = plan(4, warm);
        let (report, violation) = run(Options { plan: Some(plan), ..Options::seed(seed) });
        assert_eq!(violation, None);
        assert_eq!((report.jobs_failed, report.restarts), (0, 0));
        assert!(report.jobs_completed > 20);
        assert!(report.recovery <= HOUR, "{}", report.recovery);
    }
}

/// A busy pool, and no fault but those that a test adds.
fn plan(size: u32, warm: u32) -> Plan {
    let config = Config {
        prefix: "runner-".into(),
        size,
        warm,
        poll: 30 * SECOND,
        boot_timeout: 10 * MINUTE,
        job_timeout: 2 * HOUR,
        keep_failed: false,
        jit: true,
        surplus_after: 10 * MINUTE,
        max_idle: DAY,
        owner: "octo",
        repository: false,
        scale_set: false,
    };
    Plan {
        config,
        length: 5 * HOUR,
        job_every: 2 * MINUTE,
        job_takes: (10 * SECOND, 10 * MINUTE),
        rates: [0; FAULTS.len()],
        disturbed_every: 0,
        other_host: false,
        mute: false,
        skip_idle: false,
    }
}

/// Plants the bug, and sees that one of a few seeds catches it as a violation
/// of `invariant`, and none as anything else; and that without it all is well.
fn is_caught(bug: Bug, invariant: u8, plan: &Plan) {
    let run_planted = |seed, bug| run(Options { plan: Some(plan.clone()), bug, ..Options::seed(seed) }).1;
    let violations: Vec<_> = (0..12).filter_map(|seed| run_planted(seed, Some(bug))).collect();
    assert!(!violations.is_empty(), "{bug:?} is not caught");
    for violation in violations {
        assert_eq!(violation.invariant, invariant, "{bug:?}: {violation}");
    }
    for seed in 0..4 {
        assert_eq!(run_planted(seed, None), None);
    }
}

fn with(mut plan: Plan, faults: &[(Fault, u32)]) -> Plan {
    for &(fault, rate) in faults {
        plan.rates[fault as usize] = rate;
    }
    plan
}

#[test]
fn invariant_1_a_disk_used_twice_is_caught() {
    is_caught(Bug::DiskAgain, 1, &plan(3, 3));
}

#[test]
fn invariant_2_a_vm_made_before_the_slots_last_one_is_gone_is_caught() {
    is_caught(Bug::DestroyLater, 2, &plan(3, 3));
}

#[test]
fn invariant_3_a_pool_that_believes_github_and_not_the_host_is_caught() {
    is_caught(Bug::DeafToHost, 3, &with(plan(3, 3), &[(Fault::OfflineWrong, 500_000)]));
}

#[test]
fn invariant_3_destroying_before_adopting_is_caught() {
    let plan = with(plan(3, 3), &[(Fault::KilledInEffect, 10_000)]);
    is_caught(Bug::NoAdoption, 3, &plan);
}

#[test]
fn invariant_4_a_pool_that_does_not_look_again_is_caught() {
    let plan = with(plan(3, 3), &[(Fault::PowerOff, 300_000), (Fault::VmVanishes, 100_000)]);
    is_caught(Bug::NoMonitor, 4, &plan);
}

#[test]
fn invariant_4_a_registration_left_for_ever_is_caught() {
    let plan = with(plan(3, 3), &[(Fault::PowerOff, 300_000), (Fault::StuckBusy, 900_000)]);
    is_caught(Bug::NoOrphans, 4, &plan);
}

#[test]
fn invariant_4_an_idle_surplus_is_caught() {
    is_caught(Bug::NoRetire, 4, &with(plan(4, 0), &[(Fault::JobCanceled, 700_000)]));
}

#[test]
fn invariant_4_a_pool_that_does_not_stop_is_caught() {
    is_caught(Bug::DeafToStop, 4, &Plan { disturbed_every: HOUR, ..plan(3, 3) });
}

#[test]
fn invariant_4_a_pool_that_does_not_resume_is_caught() {
    is_caught(Bug::DeafToResume, 4, &Plan { disturbed_every: HOUR, ..plan(3, 3) });
}

#[test]
fn invariant_5_a_strangers_vm_of_the_same_name_is_caught() {
    is_caught(Bug::DestroyByName, 5, &plan(3, 3));
}

#[test]
fn invariant_5_a_strangers_runner_is_caught() {
    is_caught(Bug::OrphansByOffline, 5, &plan(3, 3));
}

#[test]
fn invariant_7_a_call_with_a_wrong_secret_is_caught() {
    is_caught(Bug::SecretUnchecked, 7, &with(plan(3, 3), &[(Fault::CallForged, 100_000)]));
}

/// The same busy pool, which learns of its jobs from a scale set's queue.
fn of_scale_set(size: u32, warm: u32) -> Plan {
    let plan = plan(size, warm);
    Plan { config: Config { scale_set: true, ..plan.config }, ..plan }
}

#[test]
fn without_faults_every_job_of_the_scale_set_is_completed() {
    for (seed, warm) in (0..6).zip([4, 0, 1].into_iter().cycle()) {
        let (report, violation) = run(Options { plan: Some(of_scale_set(4, warm)), ..Options::seed(seed) });
        assert_eq!(violation, None);
        assert_eq!((report.jobs_failed, report.restarts), (0, 0));
        assert!(report.jobs_completed > 20 && report.recovery <= HOUR, "{report:?}");
    }
}

#[test]
fn invariant_8_a_pool_that_does_not_hear_how_many_jobs_wait_is_caught() {
    is_caught(Bug::DeafToQueue, 8, &of_scale_set(3, 0));
}
