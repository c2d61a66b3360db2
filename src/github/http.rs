//! Requests to GitHub: with the token, bounded in time and size, sent again
//! where that is safe, and held back when the rate limit is used up.

use super::Error;
use super::pat::{self, CurrentPat, Pat};
use super::rate_limit::RateLimit;
use super::scope::Scope;
use super::time::{Clock, parse_http_date};
use crate::config::is_loopback;
use serde::Deserialize;
use std::fmt::Write;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use ureq::http::{self, HeaderMap, Method, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// How often a request is sent at most, when sending it again is safe.
const TRIES: u32 = 3;
/// The wait before the second try; it doubles for the third.
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
/// How many redirections are followed. GitHub needs one (a renamed repository).
const MAX_REDIRECTS: u32 = 3;
/// The largest answer read. A page of 100 runners is some 100 KiB.
const MAX_BODY_BYTES: u64 = 4 * 1024 * 1024;
/// How many characters of GitHub's own words go into an error.
const MAX_MESSAGE_CHARS: usize = 300;
/// How long GitHub may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For one request with all its tries. A listing of many pages may take
    /// four times as long.
    pub call: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { connect: Duration::from_secs(10), call: Duration::from_secs(30) }
    }
}

/// A request about the runners or the workflow runs of a scope.
pub(super) struct Request<'a> {
    /// What fails if this fails, such as `cannot register the runner runner-1`.
    pub what: String,
    pub method: Method,
    pub scope: &'a Scope,
    /// What follows `/orgs/ORG/actions` or `/repos/OWNER/REPOSITORY/actions`:
    /// path and query, percent-encoded.
    pub path: String,
    /// JSON; a POST without one sends an empty body.
    pub body: Option<Vec<u8>>,
}

impl Request<'_> {
    pub fn new<'a>(
        scope: &'a Scope,
        what: impl Into<String>,
        method: Method,
        path: impl Into<String>,
    ) -> Request<'a> {
        Request { what: what.into(), method, scope, path: path.into(), body: None }
    }
}

/// GitHub's response, whatever its status.
pub(super) struct Response {
    pub status: u16,
    pub body: Vec<u8>,
    /// The time by GitHub's clock, if the response has it.
    pub date: Option<SystemTime>,
    /// What GitHub says about a refusal: one line, without the token. Empty for
    /// a success.
    pub message: String,
    headers: HeaderMap,
}

/// Why there is no answer.
struct Failure {
    why: String,
    /// Whether another try may help.
    transient: bool,
}

/// How GitHub is reached. One for the whole pool: its slots share the
/// connections, the token and the rate limit.
pub(super) struct Http {
    agent: Agent,
    api_url: String,
    /// GitHub's host, for errors.
    pub host: String,
    pub pat: CurrentPat,
    timeouts: Timeouts,
    clock: Arc<dyn Clock>,
    rate_limit: RateLimit,
}

impl Http {
    /// `api_url` has no slash at its end.
    pub fn new(api_url: &str, pat: CurrentPat, timeouts: Timeouts, clock: Arc<dyn Clock>) -> Http {
        let uri = api_url.parse::<Uri>().ok();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirections are followed here: with the Authorization header,
            // but to the same host only; and a POST again as a POST.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("hyperv-runner-pool/", env!("CARGO_PKG_VERSION")))
            .accept("application/vnd.github+json")
            .timeout_connect(Some(timeouts.connect))
            // The machine's own trusted roots: that is where the owner of a
            // GitHub Enterprise Server or of a TLS-inspecting proxy has put theirs.
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build());
        if uri.as_ref().and_then(Uri::host).is_some_and(is_loopback) {
            config = config.proxy(None);
        }
        Http {
            agent: config.build().new_agent(),
            api_url: api_url.to_owned(),
            host: uri.as_ref().and_then(Uri::host).unwrap_or("GITHUB_API_URL").to_owned(),
            pat,
            timeouts,
            rate_limit: RateLimit::new(Arc::clone(&clock)),
            clock,
        }
    }

    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// When one request must be over.
    pub fn request_deadline(&self) -> Instant {
        self.clock.now() + self.timeouts.call
    }

    /// When a listing of many pages must be over.
    pub fn listing_deadline(&self) -> Instant {
        self.clock.now() + self.timeouts.call * 4
    }

    /// Sends a request and reads the whole response.
    ///
    /// A GET or DELETE is sent again after a network error or a response of
    /// 5xx. A POST is not: GitHub may have done what it asked, and a second
    /// runner of the same name would be refused. Any request is sent once more
    /// after a 401 if `GITHUB_PAT` holds another token by now.
    ///
    /// # Errors
    /// [`Error::Refused`] without sending anything when the scope is at another
    /// GitHub, which must not see the token. [`Error::RateLimited`] without
    /// sending anything while the rate limit is used up, and when this request
    /// finds it used up. [`Error::Failed`] when there is no response in time.
    pub fn send(&self, request: &Request, deadline: Instant) -> Result<Response, Error> {
        if request.scope.api_url != self.api_url {
            return Err(Error::Refused(format!(
                "{}: the runners of the {} are registered at another GitHub ({}): the token in GITHUB_PAT is only \
                 sent to GITHUB_API_URL ({})",
                request.what, request.scope, request.scope.api_url, self.api_url
            )));
        }
        let deadline = deadline.min(self.request_deadline());
        let tries = if request.method == Method::POST { 1 } else { TRIES };
        let mut back_off = FIRST_BACK_OFF;
        let mut tried = 1;
        let mut pat = self.pat.get();
        let mut pat_is_new = false;
        loop {
            self.rate_limit.check()?;
            let outcome = self.exchange(request, &pat, deadline);
            if let Ok(response) = &outcome {
                self.pat.note_expiration(&pat, &response.headers);
                let Response { status, headers, date, message, .. } = response;
                self.rate_limit.note(*status, headers, *date, message)?;
                if *status == 401
                    && !pat_is_new
                    && let Some(new) = self.pat.other_than(&pat)
                {
                    (pat, pat_is_new) = (new, true);
                    continue;
                }
            }
            let again = match &outcome {
                Ok(response) => response.status >= 500,
                Err(failure) => failure.transient,
            };
            let time_left = deadline.saturating_duration_since(self.clock.now());
            if again && tried < tries && time_left > back_off {
                self.clock.sleep(back_off);
                back_off *= 2;
                tried += 1;
                continue;
            }
            return outcome.map_err(|failure| {
                let times = if tried > 1 { format!(" (tried {tried} times)") } else { String::new() };
                Error::Failed(format!("{}: {}{times}", request.what, failure.why))
            });
        }
    }

    /// A response's body as JSON.
    ///
    /// # Errors
    /// When it is not what GitHub documents. The error holds nothing of the
    /// body, which may be a credential.
    pub fn json<T: for<'de> Deserialize<'de>>(
        &self,
        request: &Request,
        response: &Response,
    ) -> Result<T, Error> {
        serde_json::from_slice(&response.body).map_err(|e| {
            let kind = match e.classify() {
                serde_json::error::Category::Eof => "is cut off",
                serde_json::error::Category::Data => "is not of the documented form",
                _ => "is not JSON",
            };
            Error::Failed(format!(
                "{}: the response of {} ({}, {} bytes) {kind} at line {}, column {}; check GITHUB_API_URL if \
                 this stays",
                request.what,
                self.host,
                response.status,
                response.body.len(),
                e.line(),
                e.column()
            ))
        })
    }

    /// One try, and the redirections it leads through.
    fn exchange(&self, request: &Request, pat: &Pat, deadline: Instant) -> Result<Response, Failure> {
        let mut url = format!("{}{}/actions{}", self.api_url, request.scope.path(), request.path);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.exchange_once(request, pat, &url, deadline)?;
            if !matches!(response.status, 301 | 302 | 307 | 308) {
                return Ok(response);
            }
            match response.header("location").and_then(|to| self.same_host(to)) {
                Some(location) => url = location,
                None => return Ok(response),
            }
        }
        Err(Failure { why: format!("{} redirects in a circle", self.host), transient: false })
    }

    /// Where a redirection leads, unless to another host: the token is only
    /// for this one.
    fn same_host(&self, location: &str) -> Option<String> {
        let base = self.api_url.parse::<Uri>().ok()?;
        let to = location.parse::<Uri>().ok()?;
        match (to.scheme(), to.authority()) {
            (None, None) => Some(format!("{}://{}{location}", base.scheme_str()?, base.authority()?)),
            (scheme, authority) => {
                (scheme == base.scheme() && authority == base.authority()).then(|| location.to_owned())
            }
        }
    }

    fn exchange_once(
        &self,
        request: &Request,
        pat: &Pat,
        url: &str,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let authorization = pat.authorization().ok_or_else(|| Failure {
            why: format!("{} holds a character that no token has (a line break?): copy it again", pat::NAME),
            transient: false,
        })?;
        let time_left = deadline.saturating_duration_since(self.clock.now());
        let mut head = http::Request::builder()
            .method(request.method.clone())
            .uri(url)
            .header(header::AUTHORIZATION, authorization)
            .header("X-GitHub-Api-Version", "2022-11-28");
        if request.body.is_some() {
            head = head.header(header::CONTENT_TYPE, "application/json");
        }
        let sent = Instant::now();
        let outcome = if request.method == Method::POST {
            head.body(request.body.clone().unwrap_or_default())
                .map_err(ureq::Error::from)
                .and_then(|r| self.agent.run(self.limited(r, time_left)))
        } else {
            head.body(()).map_err(ureq::Error::from).and_then(|r| self.agent.run(self.limited(r, time_left)))
        };
        let outcome = outcome.and_then(|r| Response::read(r, pat)).map_err(|e| self.explain(e));
        let came = match &outcome {
            Ok(response) => response.status.to_string(),
            Err(failure) => failure.why.clone(),
        };
        let (method, scope, path) = (&request.method, request.scope.path(), &request.path);
        log::debug!("GitHub: {method} {scope}/actions{path}: {came} ({} ms)", sent.elapsed().as_millis());
        outcome
    }

    fn limited<B: ureq::AsSendBody>(
        &self,
        request: http::Request<B>,
        time_left: Duration,
    ) -> http::Request<B> {
        self.agent.configure_request(request).timeout_global(Some(time_left)).build()
    }

    /// A network error in words for the operator.
    fn explain(&self, error: ureq::Error) -> Failure {
        let host = &self.host;
        let seconds = |time: Duration| format!("{} s", time.as_secs_f32());
        let (transient, why) = match error {
            ureq::Error::Io(e) if is_name_error(&e) => (true, no_such_host(host)),
            ureq::Error::HostNotFound => (true, no_such_host(host)),
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                let time = seconds(self.timeouts.connect);
                (
                    true,
                    format!("no connection to {host} within {time}: check the network, firewall and proxy"),
                )
            }
            ureq::Error::Timeout(_) => {
                (true, format!("{host} did not answer within {}", seconds(self.timeouts.call)))
            }
            ureq::Error::ConnectionFailed => {
                (true, format!("no connection to {host}: check the network, firewall and proxy"))
            }
            ureq::Error::Io(e) if e.kind() == ErrorKind::ConnectionRefused => (
                true,
                format!("the connection to {host} is refused: check GITHUB_API_URL, firewall and proxy"),
            ),
            // The TLS library reports a bad handshake as data that makes no sense.
            ureq::Error::Io(e) if e.kind() == ErrorKind::InvalidData => (false, insecure(host, &e)),
            ureq::Error::Rustls(e) => (false, insecure(host, &e)),
            ureq::Error::Tls(e) => (false, insecure(host, &e)),
            ureq::Error::Io(e)
                if matches!(
                    e.kind(),
                    ErrorKind::UnexpectedEof
                        | ErrorKind::ConnectionReset
                        | ErrorKind::ConnectionAborted
                        | ErrorKind::BrokenPipe
                ) =>
            {
                (true, format!("the connection to {host} was cut"))
            }
            ureq::Error::BodyExceedsLimit(_) => {
                (false, format!("the answer of {host} is larger than {} MiB", MAX_BODY_BYTES >> 20))
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                (false, "the address makes no sense: check GITHUB_API_URL".to_owned())
            }
            ureq::Error::ConnectProxyFailed(e) => (true, format!("no way to {host} through the proxy ({e})")),
            other => (true, format!("no answer from {host} ({other})")),
        };
        Failure { why, transient }
    }
}

impl Response {
    fn read(mut response: http::Response<Body>, pat: &Pat) -> Result<Response, ureq::Error> {
        let body = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec()?;
        let headers = std::mem::take(response.headers_mut());
        let date = headers.get(header::DATE).and_then(|v| parse_http_date(v.to_str().ok()?));
        let status = response.status().as_u16();
        let message = if status < 300 { String::new() } else { one_line(&pat.redact(&said(&body))) };
        Ok(Response { status, body, date, message, headers })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// GitHub's words about a refusal.
/// <https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api>
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        message: String,
        #[serde(default)]
        errors: Vec<serde_json::Value>,
    }
    let Ok(said) = serde_json::from_slice::<Said>(body) else {
        return String::new();
    };
    let mut text = said.message;
    for error in &said.errors {
        let reason = error.as_str().or_else(|| error.get("message")?.as_str());
        if let Some(reason) = reason {
            let _ = write!(text, "; {reason}");
        }
    }
    text
}

/// Text from outside for one line: no control characters, not too long.
pub(super) fn one_line(text: &str) -> String {
    let mut line: String =
        text.chars().take(MAX_MESSAGE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MAX_MESSAGE_CHARS).is_some() {
        line.push_str("...");
    }
    line.trim().to_owned()
}

/// Whether the host's name could not be resolved. The standard library has no
/// kind for that.
fn is_name_error(error: &std::io::Error) -> bool {
    // WSAHOST_NOT_FOUND to WSANO_DATA.
    (cfg!(windows) && error.raw_os_error().is_some_and(|code| (11001..=11004).contains(&code)))
        || error.to_string().starts_with("failed to lookup address information")
}

fn no_such_host(host: &str) -> String {
    format!("the name {host} cannot be resolved: check the network, its DNS, and GITHUB_API_URL")
}

fn insecure(host: &str, error: &dyn std::fmt::Display) -> String {
    format!(
        "no secure connection to {host} ({error}): if a proxy or a GitHub Enterprise Server has a certificate \
         authority of its own, this machine must trust it"
    )
}
