//! Requests to GitHub: with the token, bounded in time and size, sent again
//! where that is safe, and held back when the rate limit is used up.

use super::Error;
use super::auth::Auth;
use super::clock::Clock;
use super::rate_limit::RateLimit;
use super::refusal::refusal;
use super::scope::Scope;
use super::traffic::Traffic;
use super::wire::Token;
use crate::config::is_loopback;
use crate::date::{parse_http_date, parse_time};
use crate::secret::Secret;
use crate::sync::unpoisoned;
use crate::text::one_line;
use rustls::crypto::ring;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::io::{Cursor, ErrorKind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use ureq::http::{self, HeaderMap, HeaderValue, Method, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

/// The waits before a request is sent again, when that is safe.
const BACK_OFFS: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(1000)];
/// How many redirections are followed. GitHub needs one (a renamed repository).
const MAX_REDIRECTS: u32 = 3;
/// The largest answer read. A page of 100 runners is some 100 KiB.
const MAX_BODY_BYTES: u64 = 4 * 1024 * 1024;
/// How many characters of GitHub's own words go into an error.
const MAX_MESSAGE_CHARS: usize = 300;

/// How long a connection may take, TLS included: on Windows 10 seconds of it may go to asking whether the server's
/// certificate was revoked, and a host that lets nothing out but HTTPS never learns that. Its answer is not needed.
/// <https://github.com/rustls/rustls-platform-verifier/issues/237>
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection without a request is kept: a few rounds of the monitor, which then need no new one.
const IDLE_CONNECTION: Duration = Duration::from_secs(90);
/// How long one request may take with all its tries. A listing of many pages
/// may take four times as long.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A token is replaced this long before it expires: a VM that gets a
/// registration token has the time to start and register, and no request is on
/// its way with a token that ends.
pub const TOKEN_MARGIN: Duration = Duration::from_secs(5 * 60);

/// A request about a scope.
pub(super) struct Request<'a> {
    /// What fails if this fails, such as `cannot register the runner runner-1`.
    pub what: String,
    pub method: Method,
    pub scope: &'a Scope,
    /// What follows the API's address: path and query, percent-encoded.
    pub path: String,
    /// A POST without one sends an empty body.
    pub body: Option<serde_json::Value>,
}

impl Request<'_> {
    /// A request about the runners or the workflow runs of a scope. `path` is
    /// what follows `/orgs/ORG/actions` or `/repos/OWNER/REPOSITORY/actions`.
    pub fn new<'a>(
        scope: &'a Scope,
        what: impl Into<String>,
        method: Method,
        path: impl Display,
    ) -> Request<'a> {
        let path = format!("{}/actions{path}", scope.path());
        Request { what: what.into(), method, scope, path, body: None }
    }
}

/// A request as it is sent.
pub(super) struct Outgoing<'a> {
    pub method: &'a Method,
    pub url: &'a str,
    /// What precedes the token in the Authorization header: `Bearer`, `RemoteAuth`.
    pub scheme: &'static str,
    pub token: &'a Secret,
    pub headers: &'a [(&'static str, &'a str)],
    pub body: Option<&'a serde_json::Value>,
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

/// How GitHub is reached. One for the whole pool: its slots share the
/// connections, the token and the rate limit.
pub(super) struct Http {
    agent: Agent,
    api_url: String,
    /// GitHub's host, for errors.
    pub host: String,
    pub auth: Auth,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    /// The time that GitHub told last, and when it did.
    githubs_time: Mutex<Option<(SystemTime, Instant)>>,
    rate_limit: RateLimit,
    traffic: Mutex<Traffic>,
}

impl Http {
    /// `api_url` has no slash at its end.
    pub fn new(api_url: &str, auth: Auth, timeout: Duration, clock: Arc<dyn Clock>) -> Http {
        let uri = api_url.parse::<Uri>().ok();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirections are followed here: with the Authorization header,
            // but to the same host only; and a POST again as a POST.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("hyperv-runner-pool/", env!("CARGO_PKG_VERSION")))
            .accept("application/vnd.github+json")
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .max_idle_age(IDLE_CONNECTION)
            // The machine's own trusted roots: that is where the owner of a
            // GitHub Enterprise Server or of a TLS-inspecting proxy has put theirs.
            .tls_config(
                TlsConfig::builder()
                    .root_certs(RootCerts::PlatformVerifier)
                    .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
                    .build(),
            );
        if uri.as_ref().and_then(Uri::host).is_some_and(is_loopback) {
            config = config.proxy(None);
        }
        Http {
            agent: config.build().new_agent(),
            api_url: api_url.to_owned(),
            host: uri.as_ref().and_then(Uri::host).unwrap_or("GITHUB_API_URL").to_owned(),
            auth,
            timeout,
            githubs_time: Mutex::default(),
            rate_limit: RateLimit::new(Arc::clone(&clock)),
            clock,
            traffic: Mutex::default(),
        }
    }

    /// The requests since the start.
    pub fn traffic(&self) -> Traffic {
        unpoisoned(&self.traffic).clone()
    }

    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// The time by GitHub's clock, if it has told; else by this machine's, which may be wrong.
    pub fn utc(&self) -> SystemTime {
        match *unpoisoned(&self.githubs_time) {
            Some((time, told)) => time + self.clock.now().saturating_duration_since(told),
            None => self.clock.utc(),
        }
    }

    /// Until when a token that came with this response may be used or handed
    /// out. `None` if its life is unknown, or too short to be shared.
    pub fn good_until(&self, token: &Token) -> Option<Instant> {
        let expires = parse_time(token.expires_at.as_deref()?)?;
        let life = expires.duration_since(self.utc() + TOKEN_MARGIN).ok()?;
        self.clock.now().checked_add(life)
    }

    /// When one request must be over.
    pub fn request_deadline(&self) -> Instant {
        self.clock.now() + self.timeout
    }

    /// When a listing of many pages must be over.
    pub fn listing_deadline(&self) -> Instant {
        self.clock.now() + self.timeout * 4
    }

    /// Sends a request and reads the whole response.
    ///
    /// A GET or DELETE is sent again after a network error or a response of
    /// 5xx. A POST is not: GitHub may have done what it asked, and a second
    /// runner of the same name would be refused. Any request is sent once more
    /// after a 401 if `GITHUB_PAT` holds another token by now, or the GitHub App
    /// gets another one.
    ///
    /// # Errors
    /// [`Error::Refused`] without sending anything when the scope is at another
    /// GitHub, which must not see the token, or when the GitHub App gets none.
    /// [`Error::RateLimited`] without sending anything while the rate limit is
    /// used up, and when this request finds it used up. [`Error::Failed`] when
    /// there is no response in time.
    pub fn send(&self, request: &Request, deadline: Instant) -> Result<Response, Error> {
        if request.scope.api_url != self.api_url {
            return Err(Error::Refused(format!(
                "{}: the runners of the {} are registered at another GitHub ({}): the token is only sent to \
                 GITHUB_API_URL ({})",
                request.what, request.scope, request.scope.api_url, self.api_url
            )));
        }
        let token = self.auth.token(self, request.scope)?;
        let response = self.send_as(&token, request, deadline)?;
        if response.status == 401
            && let Some(other) = self.auth.other_than(&token, self, request.scope)?
        {
            return self.send_as(&other, request, deadline);
        }
        Ok(response)
    }

    /// As [`Http::send`], with this token.
    pub fn send_as(&self, token: &Secret, request: &Request, deadline: Instant) -> Result<Response, Error> {
        let deadline = deadline.min(self.request_deadline());
        let mut back_offs = if request.method == Method::POST { [].iter() } else { BACK_OFFS.iter() };
        loop {
            self.rate_limit.check()?;
            let outcome = self.exchange(request, token, deadline);
            if let Ok(Response { status, headers, date, message, .. }) = &outcome {
                if let Some(date) = date {
                    *unpoisoned(&self.githubs_time) = Some((*date, self.clock.now()));
                }
                if let Auth::Pat(pat) = &self.auth {
                    pat.note_expiration(token, headers);
                }
                self.rate_limit.note(*status, headers, *date, message)?;
            }
            let failed = outcome.as_ref().map_or(true, |response| response.status >= 500);
            let time_left = deadline.saturating_duration_since(self.clock.now());
            match back_offs.next() {
                Some(back_off) if failed && *back_off < time_left => self.clock.sleep(*back_off),
                _ => return outcome.map_err(|why| Error::Failed(format!("{}: {why}", request.what))),
            }
        }
    }

    /// One try, and the redirections it leads through. To this GitHub only,
    /// since the token is for no other.
    fn exchange(&self, request: &Request, token: &Secret, deadline: Instant) -> Result<Response, String> {
        let mut url = format!("{}{}", self.api_url, request.path);
        let here = format!("{}/", self.api_url);
        let mut redirects = 0;
        loop {
            let response = self.exchange_once(request, token, &url, deadline)?;
            match response.header("location") {
                Some(location)
                    if matches!(response.status, 301 | 302 | 307 | 308)
                        && location.starts_with(&here)
                        && redirects < MAX_REDIRECTS =>
                {
                    url = location.to_owned();
                    redirects += 1;
                }
                _ => return Ok(response),
            }
        }
    }

    fn exchange_once(
        &self,
        request: &Request,
        token: &Secret,
        url: &str,
        deadline: Instant,
    ) -> Result<Response, String> {
        let outgoing = Outgoing {
            method: &request.method,
            url,
            scheme: "Bearer",
            token,
            headers: &[("X-GitHub-Api-Version", "2022-11-28")],
            body: request.body.as_ref(),
        };
        self.transmit(&outgoing, deadline)
    }

    /// Sends a request once and reads the whole response.
    ///
    /// # Errors
    /// When there is none in time: one sentence.
    pub fn transmit(&self, outgoing: &Outgoing, deadline: Instant) -> Result<Response, String> {
        let Outgoing { method, url, token, .. } = outgoing;
        let json = outgoing.body.map(serde_json::Value::to_string).unwrap_or_default();
        let mut body = SendBody::none();
        let mut head = http::Request::builder()
            .method((*method).clone())
            .uri(*url)
            .header(header::AUTHORIZATION, authorization(outgoing.scheme, token)?);
        for (name, value) in outgoing.headers {
            head = head.header(*name, *value);
        }
        if !matches!(**method, Method::GET | Method::DELETE) {
            head = head.header(header::CONTENT_LENGTH, json.len());
            body = SendBody::from_owned_reader(Cursor::new(json));
        }
        if outgoing.body.is_some() {
            head = head.header(header::CONTENT_TYPE, "application/json");
        }
        let sent = Instant::now();
        let time_left = deadline.saturating_duration_since(self.clock.now());
        let outcome = head
            .body(body)
            .map_err(ureq::Error::from)
            .map(|r| self.agent.configure_request(r).timeout_global(Some(time_left)).build())
            .and_then(|r| self.agent.run(r))
            .and_then(|r| Response::read(r, token))
            .map_err(|error| self.explain(&error, url));
        let answer = outcome.as_ref().ok().map(|response| (response.status, &response.headers));
        unpoisoned(&self.traffic).note(answer);
        let came = match &outcome {
            Ok(response) => response.status.to_string(),
            Err(why) => why.clone(),
        };
        // What follows a `?` may be a credential of the queue.
        let path = url.split('?').next().unwrap_or_default();
        log::debug!("GitHub: {method} {path}: {came} ({} ms)", sent.elapsed().as_millis());
        outcome
    }

    /// A response's body as JSON. An error holds nothing of the body, which
    /// may be a credential.
    ///
    /// # Errors
    /// When the response is a refusal, or not what GitHub documents.
    pub fn json<T: DeserializeOwned>(&self, request: &Request, response: &Response) -> Result<T, Error> {
        if !response.is_success() {
            return Err(refusal(request, response, self));
        }
        serde_json::from_slice(&response.body).map_err(|error| self.undocumented(request, response, &error))
    }

    fn undocumented(&self, request: &Request, response: &Response, error: &serde_json::Error) -> Error {
        Error::Failed(format!(
            "{}: the response of {} ({}, {} bytes) is not the JSON that GitHub documents (line {}, column {}); \
             check GITHUB_API_URL if this stays",
            request.what,
            self.host,
            response.status,
            response.body.len(),
            error.line(),
            error.column()
        ))
    }

    /// A network error in words for the operator.
    fn explain(&self, error: &ureq::Error, url: &str) -> String {
        let uri = url.parse::<Uri>().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or(&self.host);
        let insecure = match error {
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
            // The TLS library reports a bad handshake as data that makes no sense.
            ureq::Error::Io(error) => error.kind() == ErrorKind::InvalidData,
            _ => false,
        };
        if insecure {
            return format!(
                "no secure connection to {host} ({error}): if a proxy or a GitHub Enterprise Server has a certificate \
                 authority of its own, this machine must trust it"
            );
        }
        format!(
            "no answer from {host} ({error}): check the network, its DNS, the firewall, the proxy and GITHUB_API_URL"
        )
    }
}

/// <https://docs.github.com/en/rest/authentication/authenticating-to-the-rest-api>
fn authorization(scheme: &str, token: &Secret) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {}", token.expose()))
        .map_err(|_| "the token holds a character that no token has".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

impl Response {
    fn read(mut response: http::Response<Body>, token: &Secret) -> Result<Response, ureq::Error> {
        let mut body = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec()?;
        // The Actions service puts a byte-order mark before some errors.
        if body.starts_with(BYTE_ORDER_MARK) {
            body.drain(..BYTE_ORDER_MARK.len());
        }
        let headers = std::mem::take(response.headers_mut());
        let date = headers.get(header::DATE).and_then(|v| parse_http_date(v.to_str().ok()?));
        let status = response.status().as_u16();
        let message = match status {
            ..300 => String::new(),
            _ => one_line(&token.redact(&said(&body)), MAX_MESSAGE_CHARS),
        };
        Ok(Response { status, body, date, message, headers })
    }

    /// GitHub's words as the end of an error's text.
    pub fn said(&self) -> String {
        match &*self.message {
            "" => String::new(),
            message => format!(". GitHub says: {message}"),
        }
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
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
    let Ok(said) = serde_json::from_slice::<Said>(body) else { return String::new() };
    let reasons =
        said.errors.iter().filter_map(|error| error.as_str().or_else(|| error.get("message")?.as_str()));
    [said.message.as_str()].into_iter().chain(reasons).collect::<Vec<_>>().join("; ")
}
