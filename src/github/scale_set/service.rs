//! GitHub's Actions service, which has the runner scale sets: signing in to it,
//! and sending it requests.
//!
//! As GitHub's own client does: <https://github.com/actions/scaleset>.

use crate::github::Error;
use crate::github::client::Client;
use crate::github::http::{Outgoing, Response};
use crate::github::rate_limit::MAX_WAIT;
use crate::github::scope::with_query;
use crate::secret::Secret;
use crate::sync::unpoisoned;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::time::{Duration, Instant, UNIX_EPOCH};
use ureq::http::Method;

/// Where the scale sets are, below the service's address.
pub(super) const SCALE_SETS: &str = "/_apis/runtime/runnerscalesets";

const API_VERSION: &str = "api-version=6.0-preview";

/// The pool signs in anew this long before its token expires.
const MARGIN: Duration = Duration::from_secs(60);

/// The waits before signing in is tried again: a registration token is not known everywhere at once.
const BACK_OFFS: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// How long to wait where the service limits the rate and does not say for how long.
const RATE_LIMIT: Duration = Duration::from_secs(60);

/// The service's text about this program, which must be JSON.
const USER_AGENT: &str = concat!(
    "{\"system\":\"hyperv-runner-pool\",\"version\":\"",
    env!("CARGO_PKG_VERSION"),
    "\",\"kind\":\"scaleset\"}"
);

/// The service's address and the token for it.
#[derive(Clone)]
pub(super) struct Connection {
    url: String,
    token: Secret,
    /// In seconds since 1970, if the token says.
    expires: Option<u64>,
}

/// A request to the service.
pub(super) struct Call<'a> {
    /// What fails if this fails.
    pub what: &'a str,
    pub method: Method,
    /// What follows the service's address: path, and query without the API's version.
    pub path: String,
    pub body: Option<Value>,
    /// Another token than that of the connection.
    pub token: Option<&'a Secret>,
    /// Other than that of any request.
    pub deadline: Option<Instant>,
}

impl Call<'_> {
    pub fn new(what: &str, method: Method, path: String) -> Call<'_> {
        Call { what, method, path, body: None, token: None, deadline: None }
    }
}

impl Client {
    /// The connection to the service, made if there is none or it is about to expire.
    fn connection(&self) -> Result<Connection, Error> {
        let now = self.http.utc().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut held = unpoisoned(&self.scale_set.connection);
        if let Some(connection) = &*held
            && connection.expires.is_none_or(|expires| now + MARGIN.as_secs() < expires)
        {
            return Ok(connection.clone());
        }
        let connection = self.sign_in()?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    fn sign_in(&self) -> Result<Connection, Error> {
        let what = "cannot sign in to GitHub's Actions service";
        let (token, _) = self.new_registration_token()?;
        let body = json!({ "url": self.scope.web_url(), "runner_event": "register" });
        let mut back_offs = BACK_OFFS.iter();
        let response = loop {
            let outgoing = Outgoing {
                method: &Method::POST,
                url: &format!("{}/actions/runner-registration", self.scope.api_url),
                scheme: "RemoteAuth",
                token: &token,
                headers: &[("User-Agent", USER_AGENT)],
                body: Some(&body),
            };
            let response = self.http.transmit(&outgoing, self.http.request_deadline());
            let again = response
                .as_ref()
                .map_or(true, |answer| matches!(answer.status, 401 | 403) || answer.status >= 500);
            match back_offs.next() {
                Some(wait) if again => self.http.clock().sleep(*wait),
                _ => break response.map_err(|why| Error::Failed(format!("{what}: {why}")))?,
            }
        };
        let answer = read(what, &response)?;
        let (Some(url), Some(token)) = (answer["url"].as_str(), answer["token"].as_str()) else {
            return Err(Error::Failed(format!("{what}: the answer has no address or no token")));
        };
        self.assert_safe(what, url)?;
        Ok(Connection {
            url: url.trim_end_matches('/').to_owned(),
            expires: expiry(token),
            token: Secret::new(token),
        })
    }

    /// Makes sure that a token is sent only where nobody can overhear it.
    ///
    /// # Errors
    /// When GitHub has named an address that is not https, unless it has none itself.
    pub(super) fn assert_safe(&self, what: &str, url: &str) -> Result<(), Error> {
        if url.starts_with("https://") || self.scope.api_url.starts_with("http://") {
            return Ok(());
        }
        Err(Error::Failed(format!("{what}: GitHub names an address that is not https")))
    }

    /// Sends a request to the service. Once more after a 401 with a new
    /// connection, unless the call has a token of its own.
    ///
    /// # Errors
    /// When the pool cannot sign in, or there is no response in time.
    pub(super) fn call(&self, call: &Call) -> Result<Response, Error> {
        let deadline = call.deadline.unwrap_or_else(|| self.http.request_deadline());
        let connection = self.connection()?;
        let response = self.call_by(&connection, call, deadline)?;
        if response.status != 401 || call.token.is_some() {
            return Ok(response);
        }
        // Of calls that are refused together, the first has the connection made anew.
        unpoisoned(&self.scale_set.connection).take_if(|held| held.token == connection.token);
        self.call_by(&self.connection()?, call, deadline)
    }

    fn call_by(&self, connection: &Connection, call: &Call, deadline: Instant) -> Result<Response, Error> {
        let json = ("Content-Type", "application/json");
        let headers = [("User-Agent", USER_AGENT), ("Accept", "application/json"), json];
        let outgoing = Outgoing {
            method: &call.method,
            url: &with_query(&format!("{}{}", connection.url, call.path), API_VERSION),
            scheme: "Bearer",
            token: call.token.unwrap_or(&connection.token),
            // GitHub's own client names the type also where there is no body. A body brings it itself.
            headers: if call.body.is_some() { &headers[..2] } else { &headers },
            body: call.body.as_ref(),
        };
        let sent = self.http.transmit(&outgoing, deadline);
        sent.map_err(|why| Error::Failed(format!("{}: {why}", call.what)))
    }

    /// Sends a request to the queue, whose address is not the service's.
    ///
    /// # Errors
    /// When there is no response in time.
    pub(super) fn call_queue(
        &self,
        what: &str,
        method: &Method,
        (url, token): (&str, &Secret),
        capacity: Option<&str>,
        deadline: Instant,
    ) -> Result<Response, Error> {
        let mut headers =
            vec![("User-Agent", USER_AGENT), ("Accept", "application/json; api-version=6.0-preview")];
        headers.extend(capacity.map(|capacity| ("X-ScaleSetMaxCapacity", capacity)));
        let outgoing = Outgoing { method, url, scheme: "Bearer", token, headers: &headers, body: None };
        let sent = self.http.transmit(&outgoing, deadline);
        sent.map_err(|why| Error::Failed(format!("{what}: {why}")))
    }
}

/// A success's body as JSON. An error holds nothing of it, which may be a credential.
///
/// # Errors
/// When the response is a refusal, or no JSON.
pub(super) fn read(what: &str, response: &Response) -> Result<Value, Error> {
    if !response.is_success() {
        return Err(refused(what, response));
    }
    serde_json::from_slice(&response.body)
        .map_err(|_| Error::Failed(format!("{what}: GitHub's Actions service answers no JSON")))
}

/// The error for a response that is not the expected one.
pub(super) fn refused(what: &str, response: &Response) -> Error {
    let said = response.said();
    let status = response.status;
    let retry_after = response.header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
    let is_limit = retry_after.is_some() || response.header("x-ratelimit-remaining") == Some("0");
    match status {
        429 | 403 if status == 429 || is_limit => Error::RateLimited {
            retry_after: retry_after.map_or(RATE_LIMIT, Duration::from_secs).min(MAX_WAIT),
            why: format!("{what}: GitHub's Actions service limits the rate ({status}){said}"),
        },
        401 | 403 => Error::Refused(format!(
            "{what}: GitHub's Actions service refuses the pool ({status}): check that GITHUB_PAT or the GitHub App may \
             manage self-hosted runners{said}"
        )),
        _ => Error::Failed(format!("{what}: GitHub's Actions service answered {status}{said}")),
    }
}

/// Whether the service names this exception as the reason of a refusal, in whatever member of its answer.
pub(super) fn is_because(response: &Response, exception: &str) -> bool {
    !response.is_success() && String::from_utf8_lossy(&response.body).contains(exception)
}

/// When a JSON web token expires, in seconds since 1970. It is not verified: it
/// is only to be renewed in time.
fn expiry(token: &str) -> Option<u64> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<Value>(&claims).ok()?["exp"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GitHubConfig;

    #[test]
    fn a_token_tells_when_it_expires_and_another_text_does_not() {
        // {"alg":"none"} . {"exp":1700000000}
        assert_eq!(expiry("eyJhbGciOiJub25lIn0.eyJleHAiOjE3MDAwMDAwMDB9."), Some(1_700_000_000));
        assert_eq!(expiry("opaque"), None);
        assert_eq!(expiry("a.%%%.b"), None);
    }

    #[test]
    fn no_token_is_sent_where_it_can_be_overheard_unless_github_itself_can() {
        let client = |api_url: &str| {
            let pat = Some(Secret::new("ghp_x"));
            let config = GitHubConfig { api_url: api_url.into(), pat, ..GitHubConfig::default() };
            Client::new(&config, Box::new(|| None)).unwrap()
        };
        let github = client("https://api.github.com");
        github.assert_safe("x", "https://broker.actions.githubusercontent.com/rest/").unwrap();
        let Err(Error::Failed(why)) = github.assert_safe("x", "http://example.com/") else { panic!() };
        assert!(why.contains("not https"), "{why}");
        client("http://127.0.0.1:9").assert_safe("x", "http://127.0.0.1:9/service").unwrap();
    }

    #[test]
    fn the_user_agent_is_json() {
        assert_eq!(serde_json::from_str::<Value>(USER_AGENT).unwrap()["kind"], "scaleset");
    }
}
