//! GitHub's rate limits: once one is used up, no request is sent until it is
//! over.
//!
//! <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit>

use super::Error;
use super::time::{Clock, time_of_day};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// What all slots know together of GitHub's rate limits.
pub(super) struct RateLimit {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When requests may be sent again.
    pause: Option<Pause>,
    /// How many limits that did not say how long came one after the other.
    strikes: u32,
}

#[derive(Clone, Copy)]
struct Pause {
    until: Instant,
    /// The same as a time of day, so that it reads the same in every error.
    until_utc: SystemTime,
}

impl RateLimit {
    pub fn new(clock: Arc<dyn Clock>) -> RateLimit {
        RateLimit { clock, state: Mutex::default() }
    }

    /// Whether a request may be sent now.
    ///
    /// # Errors
    /// [`Error::RateLimited`] when not.
    pub fn check(&self) -> Result<(), Error> {
        let now = self.clock.now();
        match self.state().pause {
            Some(pause) if pause.until > now => Err(pause.error(now)),
            _ => Ok(()),
        }
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
        let paused = state.pause.is_some_and(|pause| pause.until > now);
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
        let pause = match state.pause {
            Some(pause) if pause.until >= now + wait => pause,
            _ => Pause { until: now + wait, until_utc: self.clock.utc() + wait },
        };
        state.pause = Some(pause);
        drop(state);
        let error = pause.error(now);
        if !paused {
            log::warn!("{error}; GitHub answered {status} {message}");
        }
        if limited { Err(error) } else { Ok(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pause {
    fn error(&self, now: Instant) -> Error {
        let why = format!("GitHub's rate limit is used up until {} UTC", time_of_day(self.until_utc));
        Error::RateLimited { retry_after: self.until - now, why }
    }
}
