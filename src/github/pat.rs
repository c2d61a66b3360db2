//! The personal access token: the one in use, until when it is valid, and the
//! next one when GitHub refuses it.

use super::time::parse_token_expiration;
use crate::secret::Secret;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use ureq::http::{HeaderMap, HeaderValue};

/// What the token is called in errors.
pub(super) const NAME: &str = "the token in GITHUB_PAT";

/// Reads `GITHUB_PAT` again. Called when GitHub refuses the token in use.
pub type ReadPat = Box<dyn Fn() -> Option<Secret> + Send + Sync>;

/// A token, as a request was sent with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pat {
    value: Secret,
    /// How often `GITHUB_PAT` had been read again by then.
    reads: u64,
}

/// The token of all requests.
pub(super) struct CurrentPat {
    state: Mutex<State>,
    read: ReadPat,
}

struct State {
    pat: Pat,
    expires: Option<SystemTime>,
}

impl CurrentPat {
    pub fn new(value: Secret, read: ReadPat) -> CurrentPat {
        CurrentPat { state: Mutex::new(State { pat: Pat { value, reads: 0 }, expires: None }), read }
    }

    pub fn get(&self) -> Pat {
        self.state().pat.clone()
    }

    /// When the token expires, as far as GitHub has said.
    pub fn expires(&self) -> Option<SystemTime> {
        self.state().expires
    }

    /// Keeps the expiration date that GitHub sends with each answer to a token
    /// that has one.
    /// <https://github.blog/changelog/2021-07-26-expiration-options-for-personal-access-tokens/>
    pub fn note_expiration(&self, pat: &Pat, headers: &HeaderMap) {
        let header = headers.get("github-authentication-token-expiration");
        let Some(expires) = header.and_then(|value| parse_token_expiration(value.to_str().ok()?)) else {
            return;
        };
        let mut state = self.state();
        if state.pat.value == pat.value {
            state.expires = Some(expires);
        }
    }

    /// The token to use instead of one that GitHub has refused. `None` when
    /// there is no other. Requests that were refused together read it once.
    pub fn other_than(&self, refused: &Pat) -> Option<Pat> {
        let mut state = self.state();
        if state.pat.reads == refused.reads {
            state.pat.reads += 1;
            if let Some(value) = (self.read)()
                && value != state.pat.value
                && authorization(&value).is_some()
            {
                state.pat.value = value;
                state.expires = None;
                log::info!("GitHub refused {NAME}; a new one was found there and is used from now on");
            }
        }
        (state.pat.value != refused.value).then(|| state.pat.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pat {
    /// The value of the `Authorization` header. `None` when the token holds a
    /// character that no header can, such as a line break.
    /// <https://docs.github.com/en/rest/authentication/authenticating-to-the-rest-api>
    pub fn authorization(&self) -> Option<HeaderValue> {
        authorization(&self.value)
    }

    /// The text with `***` in place of the token.
    pub fn redact(&self, text: &str) -> String {
        match self.value.expose() {
            "" => text.to_owned(),
            token => text.replace(token, "***"),
        }
    }
}

fn authorization(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn pat(value: &str) -> Pat {
        Pat { value: Secret::new(value), reads: 0 }
    }

    #[test]
    fn a_token_with_a_line_break_fits_no_header() {
        assert_eq!(pat("ghp_abc\nghp_def").authorization(), None);
    }

    #[test]
    fn the_header_does_not_print_the_token() {
        let pat = pat("ghp_abc");
        assert_eq!(pat.authorization().unwrap().as_bytes(), b"Bearer ghp_abc");
        assert!(!format!("{:?} {pat:?}", pat.authorization()).contains("ghp_abc"));
    }

    #[test]
    fn requests_that_were_refused_together_read_the_token_once() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let current = CurrentPat::new(
            Secret::new("old"),
            Box::new(move || {
                let again = counted.fetch_add(1, Ordering::SeqCst);
                Some(Secret::new(if again < 1 { "old" } else { "new" }))
            }),
        );
        let first = current.get();
        assert_eq!(current.other_than(&first), None, "it is still the same");
        assert_eq!(current.other_than(&first), None, "and was not read again for the same refusal");
        assert_eq!(reads.load(Ordering::SeqCst), 1);

        let second = current.get();
        let new = current.other_than(&second).unwrap();
        assert_eq!(new.value.expose(), "new");
        assert_eq!(current.other_than(&first), Some(new.clone()));
        assert_eq!(current.other_than(&second), Some(new));
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_token_that_fits_no_header_does_not_replace_one() {
        let current = CurrentPat::new(Secret::new("old"), Box::new(|| Some(Secret::new("a\nb"))));
        assert_eq!(current.other_than(&current.get()), None);
        assert_eq!(current.get().value.expose(), "old");
    }
}
