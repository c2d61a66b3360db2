//! How long to wait before a retry: one policy, and the randomness that keeps
//! retries apart.

use super::Millis;

/// The wait after the first failure.
const LEAST: Millis = 1_000;

/// The longest wait.
pub const MOST: Millis = 5 * 60_000;

/// The wait after so many failures in a row, in milliseconds. With up to half
/// as much again, so that what failed together is not retried together.
pub fn wait(failures: u32, random: &mut Random) -> Millis {
    let wait = LEAST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MOST);
    (wait + random.up_to(wait / 2)).min(MOST)
}

/// The same, but no sooner than `retry_after`, with a tenth as much again: the
/// end of a rate limit must not bring all slots at once.
pub fn wait_at_least(failures: u32, retry_after: Millis, random: &mut Random) -> Millis {
    let wait = wait(failures, random);
    if retry_after <= wait { wait } else { retry_after + random.up_to(retry_after / 10 + LEAST) }
}

/// SplitMix64: statistically sound and three lines, where a crate would be too much.
#[derive(Clone, Debug, Default)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `most`.
    pub fn up_to(&mut self, most: Millis) -> Millis {
        (self.bits() % (most.max(0) as u64 + 1)) as Millis
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit() {
        let mut random = Random(1);
        for (failures, least) in [(1, 1_000), (2, 2_000), (5, 16_000)] {
            let waited = wait(failures, &mut random);
            assert!((least..=least * 3 / 2).contains(&waited), "{failures}: {waited}");
        }
        assert_eq!(wait(1_000, &mut random), MOST);
    }

    #[test]
    fn slots_that_a_rate_limit_held_back_together_come_back_apart() {
        let mut random = Random(2);
        let waits: Vec<Millis> = (0..8).map(|_| wait_at_least(1, 3_600_000, &mut random)).collect();
        assert!(waits.iter().all(|wait| (3_600_000..=3_961_000).contains(wait)), "{waits:?}");
        assert!(waits.iter().max().unwrap() - waits.iter().min().unwrap() > 60_000, "{waits:?}");
    }
}
