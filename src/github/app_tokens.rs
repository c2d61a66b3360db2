//! A GitHub App's access to the runners of a scope: installation access
//! tokens, each good for an hour, made in time and shared by all threads.
//!
//! <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/about-authentication-with-a-github-app>,
//! <https://docs.github.com/en/rest/apps/apps>

use super::Error;
use super::auth::ReadCredential;
use super::http::{Http, Request, Response, TOKEN_MARGIN};
use super::refusal::{refusal, refused};
use super::scope::Scope;
use super::wire::{Installation, Token};
use crate::config::Credential;
use crate::private_key::PrivateKey;
use crate::secret::Secret;
use crate::sync::unpoisoned;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use ureq::http::Method;

/// A sign-in begins this long ago, since GitHub's clock may be behind.
const JWT_BACKDATED: Duration = Duration::from_secs(60);
/// GitHub takes a sign-in of 10 minutes at most, counted by its own clock.
const JWT_LIFE: Duration = Duration::from_secs(8 * 60);
/// How wrong a clock must be for a refused sign-in to be tried again by GitHub's.
const CLOCK_IS_WRONG: Duration = Duration::from_secs(30);
/// A token that is refused although it is younger than this is not replaced:
/// the next would be refused too.
const YOUNG: Duration = Duration::from_secs(60);
/// How long after a failure a token is used that lasts for a few minutes more.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// The tokens of all requests.
pub(super) struct AppTokens {
    /// The App's client ID or number.
    pub id: String,
    /// Locked while a token is made, so that one thread makes it for all.
    state: Mutex<State>,
    /// How many tokens were asked for.
    attempts: AtomicU64,
    read: ReadCredential,
}

struct State {
    key: PrivateKey,
    /// One for the pool's scope, and perhaps some of VMs from before a change
    /// of settings.
    tokens: Vec<ScopeToken>,
    /// What came of the last attempt, if it failed.
    failure: Option<(Scope, Error)>,
}

impl State {
    fn token(&self, scope: &Scope, now: Instant) -> Option<&ScopeToken> {
        self.tokens.iter().find(|token| token.scope == *scope && now < token.good_until)
    }
}

struct ScopeToken {
    scope: Scope,
    value: Secret,
    made: Instant,
    /// When another is made.
    good_until: Instant,
    ends: Instant,
}

impl AppTokens {
    pub fn new(id: String, key: PrivateKey, read: ReadCredential) -> AppTokens {
        let state = State { key, tokens: Vec::new(), failure: None };
        AppTokens { id, state: Mutex::new(state), attempts: AtomicU64::new(0), read }
    }

    /// The token for a scope, made anew if there is none or it is about to expire.
    ///
    /// # Errors
    /// Why GitHub gives none. All who waited for one attempt get its error, so
    /// that they do not repeat it one after the other.
    pub fn token(&self, http: &Http, scope: &Scope) -> Result<Secret, Error> {
        let before = self.attempts.load(Ordering::Acquire);
        let mut state = unpoisoned(&self.state);
        if let Some(token) = state.token(scope, http.clock().now()) {
            return Ok(token.value.clone());
        }
        if let Some((failed, error)) = &state.failure
            && failed == scope
            && self.attempts.load(Ordering::Acquire) != before
        {
            return Err(error.clone());
        }
        // A key can be replaced at any time, without a restart.
        match (self.read)() {
            Some(Credential::App { id, key }) if id == self.id => state.key = key,
            _ => {}
        }
        let mut outcome = self.make(http, &state.key, scope);
        let now = http.clock().now();
        state.tokens.retain(|token| now < token.ends);
        let old = state.tokens.iter().position(|token| token.scope == *scope);
        let old = old.map(|index| state.tokens.swap_remove(index));
        if let (Err(error @ (Error::Failed(_) | Error::RateLimited { .. })), Some(old)) = (&outcome, old) {
            log::warn!("{error}; the token before is used as long as it lasts");
            outcome = Ok(ScopeToken { good_until: old.ends.min(now + TRY_AGAIN), ..old });
        }
        self.attempts.fetch_add(1, Ordering::Release);
        state.failure = outcome.as_ref().err().map(|error| (scope.clone(), error.clone()));
        let token = outcome?;
        let value = token.value.clone();
        state.tokens.push(token);
        Ok(value)
    }

    /// The token to use instead of one that GitHub has refused. `None` when
    /// that one is so young that another would be refused too.
    ///
    /// # Errors
    /// As [`AppTokens::token`].
    pub fn other_than(&self, refused: &Secret, http: &Http, scope: &Scope) -> Result<Option<Secret>, Error> {
        let now = http.clock().now();
        let mut state = unpoisoned(&self.state);
        if state.token(scope, now).is_some_and(|token| token.value == *refused && now < token.made + YOUNG) {
            return Ok(None);
        }
        // Of requests that are refused together, the first has it made anew.
        state.tokens.retain(|token| token.value != *refused);
        drop(state);
        self.token(http, scope).map(Some)
    }

    /// Finds the App's installation for a scope, which may be another than an
    /// hour ago, and makes a token that can do what the pool needs, and no more.
    fn make(&self, http: &Http, key: &PrivateKey, scope: &Scope) -> Result<ScopeToken, Error> {
        let what = format!("cannot sign in as the GitHub App {}", self.id);
        let path = format!("{}/installation", scope.path());
        let request = Request { what, method: Method::GET, scope, path, body: None };
        let response = self.send(http, key, &request)?;
        if !response.is_success() {
            return Err(self.refusal(http, &request, &response));
        }
        let installation: Installation = http.json(&request, &response)?;
        let refused = |why: String| Err(Error::Refused(format!("{}: {why}", request.what)));
        if installation.suspended_at.is_some() {
            return refused(format!(
                "it is suspended for {}: an owner can end that in the settings of {0}, under GitHub Apps",
                scope.owner
            ));
        }
        let (granted, missing): (Vec<_>, Vec<_>) =
            needs(scope).iter().partition(|need| need.is_met_by(&installation.permissions));
        if let Some(need) = missing.iter().find(|need| !need.optional) {
            return refused(format!(
                "it does not have the permission {:?} in the {scope}: add it in the App's settings under Permissions & \
                 events, and let an owner of {} accept it",
                need.label, scope.owner
            ));
        }

        let permissions: serde_json::Map<String, Value> =
            granted.iter().map(|need| (need.name.to_owned(), need.access.into())).collect();
        let mut body = json!({ "permissions": permissions });
        if let Some(repository) = &scope.repository {
            body["repositories"] = json!([repository]);
        }
        let path = format!("/app/installations/{}/access_tokens", installation.id);
        let request = Request { method: Method::POST, path, body: Some(body), ..request };
        let response = self.send(http, key, &request)?;
        if !response.is_success() {
            return Err(self.refusal(http, &request, &response));
        }
        let token: Token = http.json(&request, &response)?;
        let made = http.clock().now();
        // One of unknown life serves this request only.
        let (good_until, ends) =
            http.good_until(&token).map_or((made, made), |until| (until, until + TOKEN_MARGIN));
        Ok(ScopeToken { scope: scope.clone(), value: Secret::new(token.token), made, good_until, ends })
    }

    /// Sends a request as the App itself. If that is refused and this machine's
    /// clock is wrong, once more by GitHub's.
    fn send(&self, http: &Http, key: &PrivateKey, request: &Request) -> Result<Response, Error> {
        let deadline = http.request_deadline();
        let time = http.utc();
        let response = http.send_as(&jwt(&self.id, key, time), request, deadline)?;
        let githubs = http.utc();
        let apart = githubs.duration_since(time).unwrap_or_else(|err| err.duration());
        if response.status != 401 || apart < CLOCK_IS_WRONG {
            return Ok(response);
        }
        log::warn!("this machine's clock is {} s apart from GitHub's", apart.as_secs());
        http.send_as(&jwt(&self.id, key, githubs), request, deadline)
    }

    /// Why the App gets no token.
    fn refusal(&self, http: &Http, request: &Request, response: &Response) -> Error {
        let (scope, owner) = (request.scope, &request.scope.owner);
        let why = match response.status {
            401 => "GitHub refuses its private key (401): check that GITHUB_APP_PRIVATE_KEY_PATH holds a key of this App \
                    that was not deleted in its settings, that GITHUB_APP_ID is the same App's, and this machine's clock"
                .to_owned(),
            404 if response.message.contains("Integration not found") => {
                "GitHub does not know it (404): check GITHUB_APP_ID and GITHUB_API_URL".to_owned()
            }
            404 => match &scope.repository {
                Some(repository) => format!(
                    "it is not installed for {owner}, or may not access the repository {repository} (404): install it \
                     for {owner} and choose that repository, or check GITHUB_ORG and GITHUB_REPO"
                ),
                None => format!(
                    "it is not installed for the organization {owner} (404): install it there, or check GITHUB_ORG (a \
                     personal account has no runners of its own: set GITHUB_REPO too)"
                ),
            },
            403 => format!("GitHub gives it no token for the {scope} (403)"),
            422 => format!(
                "GitHub gives it no token for the {scope} (422): check its permissions and GITHUB_REPO"
            ),
            _ => return refusal(request, response, http),
        };
        refused(request, response, &why)
    }
}

/// A permission that the pool needs.
struct Need {
    /// As the REST API names it.
    name: &'static str,
    access: &'static str,
    /// As GitHub's settings name it.
    label: &'static str,
    /// Whether the pool can do without.
    optional: bool,
}

impl Need {
    fn is_met_by(&self, granted: &serde_json::Map<String, Value>) -> bool {
        let access = granted.get(self.name).and_then(Value::as_str);
        access.is_some_and(|access| access == self.access || matches!(access, "write" | "admin"))
    }
}

/// <https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps>
fn needs(scope: &Scope) -> &'static [Need] {
    const RUNNERS: Need = Need {
        name: "organization_self_hosted_runners",
        access: "write",
        label: "Self-hosted runners: read and write",
        optional: false,
    };
    const ADMINISTRATION: Need = Need {
        name: "administration",
        access: "write",
        label: "Administration: read and write",
        optional: false,
    };
    const ACTIONS: Need =
        Need { name: "actions", access: "read", label: "Actions: read-only", optional: true };
    if scope.repository.is_some() { &[ADMINISTRATION, ACTIONS] } else { &[RUNNERS] }
}

/// What an App signs in with.
/// <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app>
fn jwt(id: &str, key: &PrivateKey, time: SystemTime) -> Secret {
    let now = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = json!({
        "iat": now.saturating_sub(JWT_BACKDATED).as_secs(),
        "exp": (now + JWT_LIFE).as_secs(),
        "iss": id,
    });
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let head = encode(br#"{"alg":"RS256","typ":"JWT"}"#);
    let signed = format!("{head}.{}", encode(claims.to_string().as_bytes()));
    let signature = encode(&key.sign(&signed));
    Secret::new(format!("{signed}.{signature}"))
}
