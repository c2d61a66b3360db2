//! What the pool shows GitHub with each request: a personal access token, or a
//! token of a GitHub App.

use super::Error;
use super::app_tokens::AppTokens;
use super::http::Http;
use super::pat::CurrentPat;
use super::scope::Scope;
use crate::config::Credential;
use crate::secret::Secret;
use std::time::SystemTime;

/// Reads the settings about the token or the App again. `None` if there are
/// none that can be used.
pub type ReadCredential = Box<dyn Fn() -> Option<Credential> + Send + Sync>;

pub(super) enum Auth {
    Pat(CurrentPat),
    App(AppTokens),
}

impl Auth {
    pub fn new(credential: Credential, read: ReadCredential) -> Auth {
        match credential {
            Credential::Pat(pat) => Auth::Pat(CurrentPat::new(pat, read)),
            Credential::App { id, key } => Auth::App(AppTokens::new(id, key, read)),
        }
    }

    /// The token for a request about a scope.
    ///
    /// # Errors
    /// Why GitHub gives the App none.
    pub fn token(&self, http: &Http, scope: &Scope) -> Result<Secret, Error> {
        match self {
            Auth::Pat(pat) => Ok(pat.get()),
            Auth::App(app) => app.token(http, scope),
        }
    }

    /// The token to use instead of one that GitHub has refused. `None` when
    /// there is no other.
    ///
    /// # Errors
    /// Why GitHub gives the App none.
    pub fn other_than(&self, refused: &Secret, http: &Http, scope: &Scope) -> Result<Option<Secret>, Error> {
        match self {
            Auth::Pat(pat) => Ok(pat.other_than(refused)),
            Auth::App(app) => app.other_than(refused, http, scope),
        }
    }

    /// When the personal access token expires, as far as GitHub has said.
    pub fn pat_expires(&self) -> Option<SystemTime> {
        match self {
            Auth::Pat(pat) => pat.expires(),
            Auth::App(_) => None,
        }
    }
}
