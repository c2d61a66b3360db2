//! The HTTP server: what may be asked, by whom.
//!
//! `tiny_http` parses and answers ([`server`]), behind a guard that bounds what
//! a client may use; here a request becomes a reply. A handler never waits for a
//! VM, for PowerShell or for GitHub.

mod callback;
mod guard;
mod metrics;
pub mod operator;
mod page;
pub mod server;
mod status;
mod webhook;

use crate::config::{GitHubConfig, Intake};
use crate::pool::millis;
use crate::repeats::PerMinute;
use crate::secret::Keys;
use crate::sync::unpoisoned;
use crate::workers::Pool;
use log::warn;
use operator::Operator;
use server::{Method, Reply, Request};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use webhook::{Deliveries, Webhooks};

/// Told of each job that a webhook speaks of: the action, the job's id and its labels.
pub type JobListener = dyn Fn(&str, u64, &[String]) + Send + Sync;

/// Answers requests.
pub struct Api {
    pool: Arc<Pool>,
    keys: Keys,
    github: GitHubConfig,
    deliveries: Mutex<Deliveries>,
    webhooks: Mutex<Webhooks>,
    listener: Option<Box<JobListener>>,
    started: Instant,
    refusals: Mutex<PerMinute<String>>,
    /// Without it, no command is obeyed.
    pub operator: Option<Operator>,
}

impl Api {
    /// The routes of `pool`. The simulated GitHub listens to the jobs that webhooks speak of.
    pub fn new(pool: Arc<Pool>, keys: Keys, github: GitHubConfig, listener: Option<Box<JobListener>>) -> Api {
        Api {
            pool,
            keys,
            github,
            deliveries: Mutex::default(),
            webhooks: Mutex::default(),
            listener,
            started: Instant::now(),
            refusals: Mutex::default(),
            operator: None,
        }
    }

    fn listen(&self, action: &str, job_id: u64, labels: &[String]) {
        if let Some(listener) = &self.listener {
            listener(action, job_id, labels);
        }
    }

    /// Logs a refusal, with all of the last minute in one line: neither a job
    /// in a VM nor anyone else must be able to fill the log.
    fn note_refusal(&self, why: String) {
        let now = millis(self.started.elapsed());
        let tally = unpoisoned(&self.refusals).note(why, now);
        if let Some(tally) = tally {
            warn!("refused: {tally}");
        }
    }

    /// The answer to a request.
    pub fn answer(&self, request: &Request) -> Reply {
        let public = matches!(request.path, "/webhook" | "/health");
        if !public && came_through_a_proxy(request) {
            return Reply::text(403, "Only /webhook and /health can be reached through a proxy");
        }
        let peer = request.peer.ip().to_canonical();
        let is_own = |operator: &Operator| operator.address == peer;
        let is_here = peer.is_loopback() || self.operator.as_ref().is_some_and(is_own);
        let local = is_here && is_for_this_host(request);
        let mut segments = request.path.strip_prefix('/').unwrap_or("*").split('/');
        let route = (segments.next(), segments.next(), segments.next(), segments.next());
        match route {
            (Some("webhook"), None, ..) if self.github.intake != Intake::Webhook => Reply::text(
                404,
                format!("This pool takes no webhooks: INTAKE is {}", self.github.intake.word()),
            ),
            (Some("webhook"), None, ..) => only(request, Method::Post, || webhook::handle(self, request)),
            (Some("health"), None, ..) => only(request, Method::Get, || status::health(self)),
            (Some("metrics"), None, ..) => only(request, Method::Get, || metrics::metrics(self)),
            (Some(""), None, ..)
            | (Some("api"), Some("status" | "failed-vms" | "stop" | "drain" | "resume" | "recycle"), ..)
                if !local =>
            {
                Reply::text(
                    403,
                    "This can be read and commanded on the host itself only, as http://localhost",
                )
            }
            // A command that shows another pool's token means that pool.
            (Some("api"), Some("status"), None, _)
                if request.headers.get("authorization").is_some()
                    && !operator::may_command(self, request) =>
            {
                operator::refused(self)
            }
            (Some(""), None, ..) => only(request, Method::Get, page::page),
            (Some("api"), Some("status"), None, _) => only(request, Method::Get, || status::status(self)),
            (Some("api"), Some("failed-vms"), Some(incarnation), None) => {
                only(request, Method::Get, || status::picture(self, incarnation))
            }
            (Some("api"), Some(command @ ("stop" | "drain" | "resume" | "recycle")), argument, None) => {
                only(request, Method::Post, || operator::command(self, request, command, argument))
            }
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

/// What the request presents as `Authorization: Bearer`.
fn bearer<'a>(request: &Request<'a>) -> Option<&'a str> {
    let value = request.headers.get("authorization")?;
    let (scheme, presented) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case("bearer ").then(|| presented.trim())
}

fn only(request: &Request, method: Method, answer: impl FnOnce() -> Reply) -> Reply {
    let head_for_get = *request.method == Method::Head && method == Method::Get;
    if *request.method == method || head_for_get {
        return answer();
    }
    let allowed = if method == Method::Get { "GET, HEAD" } else { "POST" };
    Reply::text(405, "Method not allowed").with_header("Allow", allowed)
}

/// A page of the internet in a browser on this host can give a name of its own this
/// host's address, and then read what comes from that name. It cannot do so with
/// `localhost` or an address.
fn is_for_this_host(request: &Request) -> bool {
    let Some(host) = request.headers.get("Host") else { return true };
    let name =
        host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

/// Tunnels and reverse proxies mark what they forward. A tunnel that
/// publishes the port must not publish the private routes with it.
fn came_through_a_proxy(request: &Request) -> bool {
    let starts_with = |name: &str, prefix: &str| {
        name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    request.headers.names().any(|name| {
        ["forwarded", "via", "x-real-ip"].iter().any(|whole| name.eq_ignore_ascii_case(whole))
            || ["x-forwarded-", "tailscale-", "cf-"].iter().any(|prefix| starts_with(name, prefix))
    })
}
