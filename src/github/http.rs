//! Requests to GitHub: signed, bounded in time and size, retried where that is
//! safe, and held back by all slots together when the rate limit is used up.

use super::Error;
use super::auth::Auth;
use super::time::{Clock, parse_http_date, time_of_day};
use serde::Deserialize;
use std::fmt::Write;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use ureq::http::{HeaderMap, Method, Request, Response, Uri, header};
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
/// The first wait after a secondary rate limit that does not say how long:
/// "wait for at least one minute", then longer each time.
/// <https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api>
const SECONDARY_WAIT: Duration = Duration::from_secs(60);
/// How often that wait doubles at most (16 minutes).
const MAX_DOUBLINGS: u32 = 4;
/// The longest wait for a rate limit: its window is one hour. A longer one is
/// a mistake somewhere, and must not deafen the pool for good.
const MAX_LIMIT_WAIT: Duration = Duration::from_secs(3600);

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

/// One request, as it is sent in each try.
pub(super) struct Call {
    /// What fails if this fails, such as `cannot register the runner runner-1`.
    pub what: String,
    pub method: Method,
    /// Path and query, percent-encoded.
    pub path: String,
    /// JSON; a POST without one sends an empty body.
    pub body: Option<Vec<u8>>,
}

/// GitHub's answer, whatever its status.
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    /// GitHub's clock, if it told.
    pub date: Option<SystemTime>,
    headers: HeaderMap,
}

/// Why there is no answer.
struct Failure {
    why: String,
    /// Whether another try may help.
    transient: bool,
}

#[derive(Default)]
struct Gate {
    /// When requests may be sent again.
    opens: Option<Instant>,
    /// How many secondary limits without a time came one after the other.
    strikes: u32,
}

pub(super) struct Transport {
    agent: Agent,
    api_url: String,
    /// The host, for errors.
    host: String,
    auth: Auth,
    timeouts: Timeouts,
    clock: Arc<dyn Clock>,
    gate: Mutex<Gate>,
}

impl Transport {
    pub fn new(api_url: &str, auth: Auth, timeouts: Timeouts, clock: Arc<dyn Clock>) -> Transport {
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
        Transport {
            agent: config.build().new_agent(),
            api_url: api_url.trim_end_matches('/').to_owned(),
            host: uri.as_ref().and_then(Uri::host).unwrap_or("GITHUB_API_URL").to_owned(),
            auth,
            timeouts,
            clock,
            gate: Mutex::default(),
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

    /// Sends a request and reads the whole answer.
    ///
    /// A GET or DELETE is tried again after a network error or an answer of
    /// 5xx. A POST is not: GitHub may have done what it asked, and a second
    /// runner of the same name would be refused.
    ///
    /// # Errors
    /// [`Error::RateLimited`] without sending anything while the rate limit is
    /// used up, and when this request finds it used up; [`Error::Failed`] when
    /// there is no answer in time.
    pub fn send(&self, call: &Call, deadline: Instant) -> Result<Answer, Error> {
        let deadline = deadline.min(self.request_deadline());
        let tries = if call.method == Method::POST { 1 } else { TRIES };
        let mut back_off = FIRST_BACK_OFF;
        let mut tried = 1;
        loop {
            self.pass_gate()?;
            let outcome = self.exchange(call, deadline);
            if let Ok(answer) = &outcome {
                self.note_limits(answer)?;
            }
            let again = match &outcome {
                Ok(answer) => answer.status >= 500,
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
                Error::Failed(format!("{}: {}{times}", call.what, failure.why))
            });
        }
    }

    /// The error for an answer that is not the one hoped for.
    pub fn refusal(&self, call: &Call, answer: &Answer, scope: &super::scope::Scope) -> Error {
        let token = self.auth.name();
        let why = match answer.status {
            401 => format!("GitHub refuses {token} (401): renew it, and set GITHUB_PAT to the new one"),
            403 => {
                let sso = answer.header("x-github-sso").is_some_and(|v| v.starts_with("required"));
                if sso {
                    format!(
                        "{token} is not authorized for single sign-on to the {scope} (403): authorize it in \
                         GitHub's settings, under the personal access tokens"
                    )
                } else {
                    format!(
                        "GitHub does not allow it to {token} (403): it needs {}, and its owner must be an \
                         administrator of the {scope}",
                        self.auth.needs(scope.repository.is_some())
                    )
                }
            }
            404 if scope.repository.is_some() => format!(
                "GitHub does not find the {scope}, or {token} has no access to it (404): check GITHUB_ORG and \
                 GITHUB_REPO, and that the token has {}",
                self.auth.needs(true)
            ),
            404 => format!(
                "GitHub does not find the {scope}, or {token} has no access to it (404): check GITHUB_ORG, and that \
                 the token has {} (a personal account has no runners of its own: set GITHUB_REPO too)",
                self.auth.needs(false)
            ),
            422 => "GitHub does not accept the request (422)".to_owned(),
            status @ 300..=399 => format!(
                "GitHub redirects to another place ({status}): check GITHUB_API_URL, GITHUB_ORG and GITHUB_REPO"
            ),
            status @ 500.. if self.host == "api.github.com" => {
                format!("GitHub has a fault of its own ({status}): see https://www.githubstatus.com")
            }
            status @ 500.. => format!("{} has a fault of its own ({status})", self.host),
            status => format!("GitHub answered {status}, which is not expected"),
        };
        let said = match self.message(answer) {
            message if message.is_empty() => String::new(),
            message => format!(". GitHub says: {message}"),
        };
        Error::Failed(format!("{}: {why}{said}", call.what))
    }

    /// An answer's body as JSON.
    ///
    /// # Errors
    /// When it is not what GitHub documents. The error holds nothing of the
    /// body, which may be a credential.
    pub fn json<T: for<'de> Deserialize<'de>>(&self, call: &Call, answer: &Answer) -> Result<T, Error> {
        serde_json::from_slice(&answer.body).map_err(|e| {
            let kind = match e.classify() {
                serde_json::error::Category::Eof => "is cut off",
                serde_json::error::Category::Data => "is not of the documented form",
                _ => "is not JSON",
            };
            Error::Failed(format!(
                "{}: the answer of {} ({}, {} bytes) {kind} at line {}, column {}; check GITHUB_API_URL if \
                 this stays",
                call.what,
                self.host,
                answer.status,
                answer.body.len(),
                e.line(),
                e.column()
            ))
        })
    }

    /// One try, and the redirections it leads through.
    fn exchange(&self, call: &Call, deadline: Instant) -> Result<Answer, Failure> {
        let mut url = format!("{}{}", self.api_url, call.path);
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.exchange_once(call, &url, deadline)?;
            if !matches!(answer.status, 301 | 302 | 307 | 308) {
                return Ok(answer);
            }
            match answer.header("location").and_then(|to| self.same_host(to)) {
                Some(location) => url = location,
                None => return Ok(answer),
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

    fn exchange_once(&self, call: &Call, url: &str, deadline: Instant) -> Result<Answer, Failure> {
        let fixed = |e: Error| Failure { why: e.to_string(), transient: false };
        let time_left = deadline.saturating_duration_since(self.clock.now());
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(url)
            .header(header::AUTHORIZATION, self.auth.authorization().map_err(fixed)?)
            .header("X-GitHub-Api-Version", "2022-11-28");
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let sent = Instant::now();
        let outcome = if call.method == Method::POST {
            request
                .body(call.body.clone().unwrap_or_default())
                .map_err(ureq::Error::from)
                .and_then(|r| self.agent.run(self.limited(r, time_left)))
                .and_then(Answer::read)
        } else {
            request
                .body(())
                .map_err(ureq::Error::from)
                .and_then(|r| self.agent.run(self.limited(r, time_left)))
                .and_then(Answer::read)
        };
        let outcome = outcome.map_err(|e| self.explain(e));
        let came = match &outcome {
            Ok(answer) => answer.status.to_string(),
            Err(failure) => failure.why.clone(),
        };
        log::debug!("GitHub: {} {}: {came} ({} ms)", call.method, call.path, sent.elapsed().as_millis());
        outcome
    }

    fn limited<B: ureq::AsSendBody>(&self, request: Request<B>, time_left: Duration) -> Request<B> {
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

    /// What GitHub says about a refusal, fit for one line.
    fn message(&self, answer: &Answer) -> String {
        #[derive(Deserialize)]
        struct Said {
            message: String,
            #[serde(default)]
            errors: Vec<serde_json::Value>,
        }
        let Ok(said) = serde_json::from_slice::<Said>(&answer.body) else {
            return String::new();
        };
        let mut text = said.message;
        for error in &said.errors {
            let reason = error.as_str().or_else(|| error.get("message")?.as_str());
            if let Some(reason) = reason {
                let _ = write!(text, "; {reason}");
            }
        }
        one_line(&self.auth.redact(&text))
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_gate(&self) -> Result<(), Error> {
        let now = self.clock.now();
        match self.gate().opens {
            Some(opens) if opens > now => Err(self.limited_until(opens - now)),
            _ => Ok(()),
        }
    }

    fn limited_until(&self, wait: Duration) -> Error {
        let until = time_of_day(self.clock.utc() + wait);
        let seconds = wait.as_millis().div_ceil(1000);
        let why = format!("GitHub's rate limit is used up until {until} UTC (in {seconds} s)");
        Error::RateLimited { retry_after: wait, why }
    }

    /// Closes the gate for everyone when an answer says that the rate limit is
    /// used up; an error when that answer is the refusal itself.
    ///
    /// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit>
    fn note_limits(&self, answer: &Answer) -> Result<(), Error> {
        let refused = matches!(answer.status, 403 | 429);
        let retry_after = answer.number("retry-after").filter(|_| refused).map(Duration::from_secs);
        // By GitHub's own clock where it tells the time: this machine's may be wrong.
        let reset = || {
            let reset = UNIX_EPOCH.checked_add(Duration::from_secs(answer.number("x-ratelimit-reset")?))?;
            let now = answer.date.unwrap_or_else(|| self.clock.utc());
            Some(reset.duration_since(now).unwrap_or_default() + Duration::from_secs(1))
        };
        let used_up = answer.number("x-ratelimit-remaining") == Some(0);
        let told = retry_after.or_else(|| if used_up { reset() } else { None });
        let limited = refused
            && (told.is_some() || used_up || answer.status == 429 || {
                let message = self.message(answer).to_lowercase();
                message.contains("rate limit") || message.contains("abuse detection")
            });

        let now = self.clock.now();
        let mut gate = self.gate();
        let closed = gate.opens.is_some_and(|opens| opens > now);
        let wait = match told {
            Some(wait) => wait,
            None if limited => {
                // Requests that were on their way together are one strike.
                if !closed {
                    gate.strikes += 1;
                }
                SECONDARY_WAIT * 2u32.pow(gate.strikes.saturating_sub(1).min(MAX_DOUBLINGS))
            }
            None => {
                if answer.status < 400 && !closed {
                    gate.strikes = 0;
                }
                return Ok(());
            }
        };
        let wait = wait.clamp(Duration::from_secs(1), MAX_LIMIT_WAIT);
        let opens = gate.opens.map_or(now + wait, |opens| opens.max(now + wait));
        gate.opens = Some(opens);
        drop(gate);
        let error = self.limited_until(opens - now);
        if !closed {
            log::warn!("{error}; GitHub answered {} {}", answer.status, self.message(answer));
        }
        if limited { Err(error) } else { Ok(()) }
    }
}

impl Answer {
    fn read(mut response: Response<Body>) -> Result<Answer, ureq::Error> {
        let body = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec()?;
        let headers = std::mem::take(response.headers_mut());
        let date = headers.get(header::DATE).and_then(|v| parse_http_date(v.to_str().ok()?));
        Ok(Answer { status: response.status().as_u16(), body, date, headers })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }
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

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
