//! GitHub's rate limits: once one is used up, no request is sent until it is
//! over.
//!
//! <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit>

use super::Error;
use super::clock::Clock;
use crate::date::timestamp;
use crate::sync::unpoisoned;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use ureq::http::HeaderMap;

/// The first wait after a secondary rate limit that does not say how long:
/// "wait for at least one minute", then longer each time.
/// <https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api>
const SECONDARY_WAIT: Duration = Duration::from_secs(60);
/// How often that wait doubles at most (16 minutes).
const MAX_DOUBLINGS: u32 = 4;
/// The longest wait: the window of the primary limit is one hour. A longer one
/// is a mistake somewhere, and must not stop the pool for good.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(3600);

/// What all slots know together of GitHub's rate limits.
pub(super) struct RateLimit {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    /// When requests may be sent again.
    until: Instant,
    /// The same for errors, where it must not change with every request.
    why: String,
    /// How many limits that did not say how long came one after the other.
    strikes: u32,
}

impl RateLimit {
    pub fn new(clock: Arc<dyn Clock>) -> RateLimit {
        let state = State { until: clock.now(), why: String::new(), strikes: 0 };
        RateLimit { clock, state: Mutex::new(state) }
    }

    /// Whether a request may be sent now.
    ///
    /// # Errors
    /// [`Error::RateLimited`] when not.
    pub fn check(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let state = self.state();
        if state.until > now { Err(state.error(now)) } else { Ok(()) }
    }

    /// Holds back all requests if a response says that a limit is used up.
    /// `date` is the time by GitHub's clock, `message` what its body says.
    ///
    /// # Errors
    /// [`Error::RateLimited`] when this response is the refusal itself.
    pub fn note(
        &self,
        status: u16,
        headers: &HeaderMap,
        date: Option<SystemTime>,
        message: &str,
    ) -> Result<(), Error> {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let refused = matches!(status, 403 | 429);
        let retry_after = number("retry-after").filter(|_| refused).map(Duration::from_secs);
        // By GitHub's own clock where it tells the time: this machine's may be wrong.
        let reset = || {
            let reset = UNIX_EPOCH.checked_add(Duration::from_secs(number("x-ratelimit-reset")?))?;
            let now = date.unwrap_or_else(|| self.clock.utc());
            Some(reset.duration_since(now).unwrap_or_default() + Duration::from_secs(1))
        };
        let used_up = number("x-ratelimit-remaining") == Some(0);
        let told = retry_after.or_else(|| if used_up { reset() } else { None });
        let limited = refused
            && (told.is_some() || used_up || status == 429 || {
                let message = message.to_lowercase();
                message.contains("rate limit") || message.contains("abuse detection")
            });

        let now = self.clock.now();
        let mut state = self.state();
        let paused = state.until > now;
        let wait = match told {
            Some(wait) => wait,
            None if limited => {
                // Requests that were on their way together are one strike.
                if !paused {
                    state.strikes += 1;
                }
                SECONDARY_WAIT * 2u32.pow(state.strikes.saturating_sub(1).min(MAX_DOUBLINGS))
            }
            None => {
                if status < 400 && !paused {
                    state.strikes = 0;
                }
                return Ok(());
            }
        };
        let wait = wait.clamp(Duration::from_secs(1), MAX_WAIT);
        if now + wait > state.until {
            let time = &timestamp(self.clock.utc() + wait)[11..19];
            state.until = now + wait;
            state.why = format!("GitHub's rate limit is used up until {time} UTC");
        }
        if !paused {
            log::warn!("{}; GitHub answered {status} {message}", state.why);
        }
        if limited { Err(state.error(now)) } else { Ok(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(&self.state)
    }
}

impl State {
    fn error(&self, now: Instant) -> Error {
        Error::RateLimited { retry_after: self.until - now, why: self.why.clone() }
    }
}
