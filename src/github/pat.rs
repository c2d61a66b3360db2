//! The personal access token: the one in use, until when it is valid, and the
//! next one when GitHub refuses it.

use super::auth::ReadCredential;
use crate::config::Credential;
use crate::date::parse_time;
use crate::secret::Secret;
use crate::sync::unpoisoned;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;
use ureq::http::HeaderMap;

/// What the token is called in errors.
pub(super) const NAME: &str = "the token in GITHUB_PAT";

/// The token of all requests.
pub(super) struct CurrentPat {
    /// With the time of its end, as far as GitHub has said.
    current: Mutex<(Secret, Option<SystemTime>)>,
    read: ReadCredential,
}

impl CurrentPat {
    pub fn new(value: Secret, read: ReadCredential) -> CurrentPat {
        CurrentPat { current: Mutex::new((value, None)), read }
    }

    pub fn get(&self) -> Secret {
        self.lock().0.clone()
    }

    /// When the token expires, as far as GitHub has said.
    pub fn expires(&self) -> Option<SystemTime> {
        self.lock().1
    }

    /// Keeps the expiration date that GitHub sends with each answer to a token
    /// that has one.
    /// <https://github.blog/changelog/2021-07-26-expiration-options-for-personal-access-tokens/>
    pub fn note_expiration(&self, pat: &Secret, headers: &HeaderMap) {
        let header = headers.get("github-authentication-token-expiration");
        let expires = header.and_then(|value| parse_time(value.to_str().ok()?));
        let mut current = self.lock();
        if expires.is_some() && current.0 == *pat {
            current.1 = expires;
        }
    }

    /// The token to use instead of one that GitHub has refused. `None` when
    /// there is no other.
    pub fn other_than(&self, refused: &Secret) -> Option<Secret> {
        let mut current = self.lock();
        // Of requests that are refused together, the first finds the new token.
        if current.0 == *refused {
            let Some(Credential::Pat(new)) = (self.read)() else { return None };
            if new == *refused {
                return None;
            }
            *current = (new, None);
            log::info!("GitHub refused {NAME}; a new one was found there and is used from now on");
        }
        Some(current.0.clone())
    }

    fn lock(&self) -> MutexGuard<'_, (Secret, Option<SystemTime>)> {
        unpoisoned(&self.current)
    }
}
