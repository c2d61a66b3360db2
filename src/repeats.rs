//! What keeps the log from being flooded: events that repeat are counted, and said now and then with their count.
//!
//! Nothing here reads a clock. `now` is in milliseconds on a clock that never goes back.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::hash::Hash;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// More kinds than this are counted together, so that nobody can use up memory by making up new ones.
const MOST_KINDS: usize = 64;

/// Failures: each is said the first time, then at doubling intervals, from a minute to an hour.
///
/// The key is what fails (a slot's creation, GitHub's list), never the text of
/// the failure: a text that counts down seconds would be new each time. Keys
/// are kept until they are cleared, so they must come from a fixed set.
#[derive(Debug)]
pub struct Repeats<K> {
    failing: HashMap<K, Failing>,
}

#[derive(Debug)]
struct Failing {
    next: i64,
    interval: i64,
    unsaid: u32,
}

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Repeats { failing: HashMap::new() }
    }
}

impl<K: Eq + Hash> Repeats<K> {
    /// Counts a failure. If it should be said now: how often it happened since it was last said, this time included.
    pub fn say(&mut self, key: K, now: i64) -> Option<u32> {
        let failing = self.failing.entry(key).or_insert(Failing { next: now, interval: MINUTE, unsaid: 0 });
        failing.unsaid = failing.unsaid.saturating_add(1);
        if now < failing.next {
            return None;
        }
        failing.next = now + failing.interval;
        failing.interval = (2 * failing.interval).min(HOUR);
        Some(std::mem::take(&mut failing.unsaid))
    }

    /// The failure is over. True if it had been said, so that its end is worth a line too.
    pub fn clear(&mut self, key: &K) -> bool {
        self.failing.remove(key).is_some()
    }
}

/// What a guest or an unauthenticated client can cause: one line a minute for everything, with a count by kind.
///
/// The first is said at once. Of a burst that ended, [`PerMinute::due`] tells the rest.
#[derive(Debug)]
pub struct PerMinute<K> {
    counts: Vec<(K, u32)>,
    others: u32,
    /// When the last line was said.
    said: Option<i64>,
}

impl<K> Default for PerMinute<K> {
    fn default() -> Self {
        PerMinute { counts: Vec::new(), others: 0, said: None }
    }
}

impl<K: PartialEq> PerMinute<K> {
    /// Counts one, and gives what [`PerMinute::due`] gives.
    pub fn note(&mut self, kind: K, now: i64) -> Option<Tally<K>> {
        let known = self.counts.iter().position(|(known, _)| *known == kind);
        if known.is_none() && self.counts.len() < MOST_KINDS {
            self.counts.push((kind, 1));
        } else {
            let count = known.map_or(&mut self.others, |at| &mut self.counts[at].1);
            *count = count.saturating_add(1);
        }
        self.due(now)
    }

    /// Everything since the last line, if there is anything and that line is a minute old.
    pub fn due(&mut self, now: i64) -> Option<Tally<K>> {
        if self.counts.is_empty() || self.said.is_some_and(|said| now - said < MINUTE) {
            return None;
        }
        let minutes = self.said.map_or(1, |said| (now - said) / MINUTE);
        self.said = Some(now);
        let mut counts = std::mem::take(&mut self.counts);
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Some(Tally { counts, others: std::mem::take(&mut self.others), minutes })
    }
}

/// How often each kind happened since the last line, the most frequent first.
///
/// Displayed as `Invalid signature` if it was one, or as
/// `Invalid signature (12 in the last minute), Missing signature (3)`.
#[derive(Debug, PartialEq, Eq)]
pub struct Tally<K> {
    counts: Vec<(K, u32)>,
    others: u32,
    minutes: i64,
}

impl<K: Display> Display for Tally<K> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let ([(kind, 1)], 0) = (self.counts.as_slice(), self.others) {
            return kind.fmt(f);
        }
        for (i, (kind, count)) in self.counts.iter().enumerate() {
            match (i, self.minutes) {
                (0, 1) => write!(f, "{kind} ({count} in the last minute)")?,
                (0, minutes) => write!(f, "{kind} ({count} in the last {minutes} minutes)")?,
                _ => write!(f, ", {kind} ({count})")?,
            }
        }
        if self.others > 0 {
            write!(f, ", others ({})", self.others)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_at_doubling_intervals_with_a_count() {
        let mut repeats = Repeats::default();
        let said: Vec<_> = (0..6 * 60)
            .filter_map(|minute| repeats.say("slot 1", minute * MINUTE).map(|count| (minute, count)))
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
        assert_eq!(repeats.say("slot 1", 0), Some(1));
        assert_eq!(repeats.say("slot 1", 1), None);
        assert_eq!(repeats.say("slot 2", 1), Some(1));
        assert!(repeats.clear(&"slot 1"));
        assert!(!repeats.clear(&"slot 1"), "it is over already");
        assert_eq!(repeats.say("slot 1", 2), Some(1));
        assert_eq!(repeats.say("slot 2", 2), None);
    }

    #[test]
    fn a_flood_is_one_line_a_minute_with_a_count_by_kind() {
        let mut refused = PerMinute::default();
        let mut lines = Vec::new();
        for now in (0..=2 * MINUTE).step_by(1000) {
            let kind = if now % 5000 == 0 { "Missing signature" } else { "Invalid signature" };
            lines.extend(refused.note(kind, now).map(|tally| tally.to_string()));
        }
        assert_eq!(
            lines,
            [
                "Missing signature",
                "Invalid signature (48 in the last minute), Missing signature (12)",
                "Invalid signature (48 in the last minute), Missing signature (12)",
            ]
        );
    }

    #[test]
    fn the_end_of_a_burst_is_told_a_minute_later() {
        let mut refused = PerMinute::default();
        assert_eq!(refused.due(0), None);
        assert_eq!(refused.note("a", 0).unwrap().to_string(), "a");
        assert_eq!(refused.note("a", 1), None);
        assert_eq!(refused.note("a", 2), None);
        assert_eq!(refused.due(MINUTE - 1), None);
        assert_eq!(refused.due(MINUTE).unwrap().to_string(), "a (2 in the last minute)");
        assert_eq!(refused.due(9 * MINUTE), None, "nothing new");
    }

    #[test]
    fn a_line_that_comes_late_says_what_time_it_covers() {
        let mut refused = PerMinute::default();
        refused.note("a", 0);
        refused.note("a", 1);
        assert_eq!(refused.note("a", 90 * MINUTE).unwrap().to_string(), "a (2 in the last 90 minutes)");
        assert_eq!(refused.note("a", 99 * MINUTE).unwrap().to_string(), "a", "one is not counted");
    }

    #[test]
    fn made_up_kinds_use_no_more_memory() {
        let mut refused = PerMinute::default();
        refused.note(0, 0);
        for kind in 1..=1_000 {
            assert_eq!(refused.note(kind, 1), None);
        }
        let tally = refused.note(1, MINUTE).unwrap();
        assert_eq!(tally.counts.len(), MOST_KINDS);
        assert_eq!(tally.counts[0], (1, 2), "the most frequent comes first");
        assert_eq!(tally.others, 1_000 - MOST_KINDS as u32);
    }
}
