//! The requests to GitHub, counted by what came of them.

use std::collections::BTreeMap;
use ureq::http::HeaderMap;

/// What came of the requests since the start, and what GitHub said last of its rate limit.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Requests that were sent, by what came of them: [`Traffic::RESULTS`].
    pub requests: BTreeMap<&'static str, u64>,
    /// The rate limit, once GitHub has told.
    pub rate_limit: Option<RateLimitLeft>,
}

/// GitHub's primary rate limit, as its last answer tells.
///
/// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#checking-the-status-of-your-rate-limit>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitLeft {
    /// Requests that may be sent in an hour.
    pub limit: u64,
    /// Requests that are left of them.
    pub remaining: u64,
    /// When there are as many again, in seconds since 1970.
    pub reset: u64,
}

impl Traffic {
    /// What can come of a request.
    pub const RESULTS: [&str; 7] =
        ["success", "not_found", "refused", "rate_limited", "client_error", "server_error", "no_answer"];

    /// A request was answered, or was not (`None`).
    pub(super) fn note(&mut self, answer: Option<(u16, &HeaderMap)>) {
        let number = |name: &str| answer?.1.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let left = || {
            Some(RateLimitLeft {
                limit: number("x-ratelimit-limit")?,
                remaining: number("x-ratelimit-remaining")?,
                reset: number("x-ratelimit-reset")?,
            })
        };
        let left = left();
        let limited = number("retry-after").is_some() || left.is_some_and(|left| left.remaining == 0);
        let result = match answer.map(|(status, _)| status) {
            None => "no_answer",
            Some(..400) => "success",
            Some(404) => "not_found",
            Some(429) => "rate_limited",
            Some(403) if limited => "rate_limited",
            Some(401 | 403) => "refused",
            Some(..500) => "client_error",
            Some(_) => "server_error",
        };
        *self.requests.entry(result).or_default() += 1;
        self.rate_limit = left.or(self.rate_limit);
    }
}

impl Default for Traffic {
    fn default() -> Traffic {
        Traffic { requests: Traffic::RESULTS.map(|result| (result, 0)).into(), rate_limit: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_came_of_them() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        let none = headers(&[]);
        let mut traffic = Traffic::default();
        for status in [200, 204, 302, 404, 401, 403, 429, 422, 502] {
            traffic.note(Some((status, &none)));
        }
        traffic.note(Some((403, &headers(&[("retry-after", "60")]))));
        traffic.note(None);
        assert_eq!(traffic.rate_limit, None);
        let mut counts = Traffic::RESULTS.map(|result| traffic.requests[result]);
        assert_eq!(counts, [3, 1, 2, 2, 1, 1, 1]);

        let used_up =
            [("x-ratelimit-limit", "5000"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "9")];
        traffic.note(Some((403, &headers(&used_up))));
        traffic.note(Some((500, &none)));
        counts = Traffic::RESULTS.map(|result| traffic.requests[result]);
        assert_eq!(counts, [3, 1, 2, 3, 1, 2, 1]);
        assert_eq!(traffic.rate_limit, Some(RateLimitLeft { limit: 5000, remaining: 0, reset: 9 }));
    }
}
