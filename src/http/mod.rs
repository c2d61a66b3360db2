//! The HTTP server: what may be asked, by whom.
//!
//! [`gate`] owns connections and limits; here a request becomes a reply. A
//! handler never waits for a VM, for PowerShell or for GitHub.

mod callback;
pub mod gate;
mod status;
mod webhook;

use crate::pool::Pool;
use crate::secret::Keys;
use crate::sim::github::MockGitHub;
use gate::{Reply, Request};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tiny_http::Method;
use webhook::Deliveries;

/// What a runner needs to know besides its own name and credential.
#[derive(Clone, Debug)]
pub struct RunnerFacts {
    /// The organisation, or the user that owns the repository.
    pub organization: String,
    /// The repository, if the runners are a repository's.
    pub repository: Option<String>,
    /// The runners' labels.
    pub labels: Vec<String>,
    /// `jit` or `token`.
    pub registration: &'static str,
    /// The page of the organisation or repository, as `config.cmd --url` wants it.
    pub url: String,
    /// The runner group's name.
    pub runner_group: String,
}

/// Answers requests.
pub struct Api {
    pool: Arc<Pool>,
    keys: Keys,
    facts: RunnerFacts,
    deliveries: Mutex<Deliveries>,
    simulation: Option<Arc<MockGitHub>>,
    refusal_noted: Mutex<Option<Instant>>,
}

impl Api {
    /// The routes of `pool`. A simulated GitHub gets the queued jobs to hand out.
    pub fn new(pool: Arc<Pool>, keys: Keys, facts: RunnerFacts, simulation: Option<Arc<MockGitHub>>) -> Api {
        Api { pool, keys, facts, deliveries: Mutex::default(), simulation, refusal_noted: Mutex::new(None) }
    }

    /// Logs a refusal, unless one was logged a moment ago: a job in a VM must not be able to fill the log.
    fn note_refusal(&self, log: impl FnOnce()) {
        const QUIET: Duration = Duration::from_secs(10);
        let mut noted = self.refusal_noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_none_or(|at| at.elapsed() >= QUIET) {
            *noted = Some(Instant::now());
            log();
        }
    }

    /// The answer to a request.
    pub fn answer(&self, request: &Request) -> Reply {
        let public = matches!(request.path, "/webhook" | "/health");
        if !public && came_through_a_proxy(request) {
            return Reply::text(403, "Only /webhook and /health can be reached through a proxy");
        }
        let local = request.peer.ip().to_canonical().is_loopback();
        let mut segments = request.path.split('/').skip(1);
        let route = (segments.next(), segments.next(), segments.next(), segments.next());
        match route {
            (Some("webhook"), None, ..) => only(request, Method::Post, || webhook::handle(self, request)),
            (Some("health"), None, ..) => only(request, Method::Get, || status::health(self)),
            (Some("metrics"), None, ..) => only(request, Method::Get, || status::metrics(self)),
            (Some("api"), Some("status"), None, _) if !local => {
                Reply::text(403, "The status can be read on the host itself only")
            }
            (Some("api"), Some("status"), None, _) => only(request, Method::Get, || status::status(self)),
            (Some("api"), Some("runner-config"), Some(vm), None) => {
                only(request, Method::Get, || callback::config(self, request, vm))
            }
            (Some("api"), Some("runner-started"), Some(vm), None) => {
                only(request, Method::Post, || callback::started(self, request, vm))
            }
            (Some("api"), Some("runner-complete"), Some(vm), None) => {
                only(request, Method::Post, || callback::complete(self, request, vm))
            }
            _ => Reply::text(404, "Not found"),
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("pool", &self.pool).finish_non_exhaustive()
    }
}

fn only(request: &Request, method: Method, answer: impl FnOnce() -> Reply) -> Reply {
    let head_for_get = request.method == Method::Head && method == Method::Get;
    if request.method == method || head_for_get {
        return answer();
    }
    let allowed = if method == Method::Get { "GET, HEAD" } else { "POST" };
    Reply::text(405, "Method not allowed").with_header("Allow", allowed)
}

/// Tunnels and reverse proxies mark what they forward. A tunnel that
/// publishes the port must not publish the private routes with it.
fn came_through_a_proxy(request: &Request) -> bool {
    let starts_with = |name: &str, prefix: &str| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    request.headers.iter().any(|(name, _)| {
        ["forwarded", "via", "x-real-ip"].iter().any(|whole| name.eq_ignore_ascii_case(whole))
            || ["x-forwarded-", "tailscale-", "cf-"].iter().any(|prefix| starts_with(name, prefix))
    })
}
