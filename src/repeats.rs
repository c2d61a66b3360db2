//! What keeps the log from being flooded: events that repeat are counted, and said now and then with their count.
//!
//! Nothing here reads a clock. `now` is in milliseconds on a clock that never goes back.

use std::collections::HashMap;
use std::fmt::Display;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// More kinds than this are counted together, so that nobody can use up memory by making up new ones.
const MOST_KINDS: usize = 64;

/// Failures: each is said the first time, then at doubling intervals, from a minute to an hour.
///
/// The key is whose failure it is (a slot, GitHub) and what failed (a VM's creation), never the text of
/// the failure: a text that counts down seconds would be new each time. Keys
/// are kept until they are cleared, so they must come from a fixed set.
#[derive(Debug, Default)]
pub struct Repeats {
    failing: HashMap<(String, &'static str), Failing>,
}

#[derive(Debug)]
struct Failing {
    next: i64,
    interval: i64,
    unsaid: u32,
}

impl Repeats {
    /// Counts a failure. If it should be said now: how often it happened since it was last said, this time included.
    pub fn say(&mut self, whose: &str, what: &'static str, now: i64) -> Option<u32> {
        let key = (whose.to_owned(), what);
        let failing = self.failing.entry(key).or_insert(Failing { next: now, interval: MINUTE, unsaid: 0 });
        failing.unsaid = failing.unsaid.saturating_add(1);
        if now < failing.next {
            return None;
        }
        failing.next = now + failing.interval;
        failing.interval = (2 * failing.interval).min(HOUR);
        Some(std::mem::take(&mut failing.unsaid))
    }

    /// All that failed there works. True if a failure had been said, so that its end is worth a line too.
    pub fn clear(&mut self, whose: &str) -> bool {
        let before = self.failing.len();
        self.failing.retain(|(its, _), _| its != whose);
        self.failing.len() < before
    }
}

/// What a guest or an unauthenticated client can cause: one line a minute for everything, with a count by kind.
///
/// The first is said at once, the rest of a burst with the next one that comes a minute later.
#[derive(Debug, Default)]
pub struct PerMinute<K> {
    counts: Vec<(K, u32)>,
    others: u32,
    /// When the last line was said.
    said: Option<i64>,
}

impl<K: PartialEq + Display> PerMinute<K> {
    /// Counts one. If the last line is a minute old: how often each kind has happened since, the most
    /// frequent first, such as `Invalid signature`, if it was one, or
    /// `Invalid signature (12), Missing signature (3) in the last minute`.
    pub fn note(&mut self, kind: K, now: i64) -> Option<String> {
        match self.counts.iter().position(|(known, _)| *known == kind) {
            Some(known) => self.counts[known].1 = self.counts[known].1.saturating_add(1),
            None if self.counts.len() < MOST_KINDS => self.counts.push((kind, 1)),
            None => self.others = self.others.saturating_add(1),
        }
        let minutes = self.said.map_or(1, |said| (now - said) / MINUTE);
        if minutes < 1 {
            return None;
        }
        self.said = Some(now);
        let mut counts = std::mem::take(&mut self.counts);
        let others = std::mem::take(&mut self.others);
        if let ([(kind, 1)], 0) = (counts.as_slice(), others) {
            return Some(kind.to_string());
        }
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let mut kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        if others > 0 {
            kinds.push(format!("others ({others})"));
        }
        let time = if minutes == 1 { "minute".to_owned() } else { format!("{minutes} minutes") };
        Some(format!("{} in the last {time}", kinds.join(", ")))
    }
}

/// How many may be written at once to what keeps few, and how long until one more may.
const BURST: i64 = 20;
const ONE_MORE_EVERY: i64 = 5 * MINUTE;

/// What may be written to a place that others read too, such as Windows' event log: some at once, and
/// then one now and then.
#[derive(Debug)]
pub struct Allowance {
    left: i64,
    /// From when on the next one is counted.
    since: i64,
    withheld: u32,
}

impl Allowance {
    /// All of it is left.
    pub fn new(now: i64) -> Allowance {
        Allowance { left: BURST, since: now, withheld: 0 }
    }

    /// Asks to write one. If it may be written: how many were withheld since the last that was.
    pub fn take(&mut self, now: i64) -> Option<u32> {
        let more = (now - self.since) / ONE_MORE_EVERY;
        self.since += more * ONE_MORE_EVERY;
        self.left = (self.left + more).min(BURST);
        if self.left == 0 {
            self.withheld = self.withheld.saturating_add(1);
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_each_second_is_written_twenty_times_and_then_every_five_minutes() {
        let mut allowance = Allowance::new(0);
        let written: Vec<(i64, u32)> = (0..15 * 60)
            .filter_map(|second| allowance.take(second * 1000).map(|withheld| (second, withheld)))
            .collect();
        let burst = (0..20).map(|second| (second, 0));
        assert_eq!(written, burst.chain([(300, 280), (600, 299)]).collect::<Vec<_>>());
        assert_eq!(allowance.take(24 * HOUR), Some(299), "the next after a calm day");
        let all_at_once = (0..100).filter(|_| allowance.take(24 * HOUR).is_some()).count();
        assert_eq!(all_at_once, 19, "no more than at the beginning");
    }

    #[test]
    fn a_failure_is_said_at_doubling_intervals_with_a_count() {
        let mut repeats = Repeats::default();
        let said: Vec<_> = (0..6 * 60)
            .filter_map(|minute| {
                repeats.say("slot 1", "create", minute * MINUTE).map(|count| (minute, count))
            })
            .collect();
        assert_eq!(
            said,
            [
                (0, 1),
                (1, 1),
                (3, 2),
                (7, 4),
                (15, 8),
                (31, 16),
                (63, 32),
                (123, 60),
                (183, 60),
                (243, 60),
                (303, 60)
            ]
        );
    }

    #[test]
    fn each_subject_counts_for_itself_and_a_failure_that_ended_is_new_again() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.say("slot 1", "create", 0), Some(1));
        assert_eq!(repeats.say("slot 1", "create", 1), None);
        assert_eq!(repeats.say("slot 1", "destroy", 1), Some(1), "something else fails");
        assert_eq!(repeats.say("slot 2", "create", 1), Some(1));
        assert!(repeats.clear("slot 1"));
        assert!(!repeats.clear("slot 1"), "it is over already");
        assert_eq!(repeats.say("slot 1", "create", 2), Some(1));
        assert_eq!(repeats.say("slot 2", "create", 2), None);
    }

    #[test]
    fn a_flood_is_one_line_a_minute_with_a_count_by_kind() {
        let mut refused = PerMinute::default();
        let mut lines = Vec::new();
        for now in (0..=2 * MINUTE).step_by(1000) {
            let kind = if now % 5000 == 0 { "Missing signature" } else { "Invalid signature" };
            lines.extend(refused.note(kind, now));
        }
        assert_eq!(
            lines,
            [
                "Missing signature",
                "Invalid signature (48), Missing signature (12) in the last minute",
                "Invalid signature (48), Missing signature (12) in the last minute",
            ]
        );
    }

    #[test]
    fn a_line_that_comes_late_says_what_time_it_covers() {
        let mut refused = PerMinute::default();
        assert_eq!(refused.note("a", 0).unwrap(), "a");
        assert_eq!(refused.note("a", 1), None);
        assert_eq!(refused.note("a", 90 * MINUTE).unwrap(), "a (2) in the last 90 minutes");
        assert_eq!(refused.note("a", 99 * MINUTE).unwrap(), "a", "one is not counted");
    }

    #[test]
    fn made_up_kinds_use_no_more_memory() {
        let mut refused = PerMinute::default();
        refused.note(0, 0);
        for kind in 1..=1_000 {
            assert_eq!(refused.note(kind, 1), None);
        }
        let line = refused.note(1, MINUTE).unwrap();
        assert_eq!(line.matches(',').count(), MOST_KINDS, "as many kinds as are told apart, and the others");
        assert!(line.starts_with("1 (2), "), "the most frequent comes first: {line}");
        assert!(line.ends_with(&format!("others ({}) in the last minute", 1_000 - MOST_KINDS)), "{line}");
    }
}
