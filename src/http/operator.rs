//! What an operator's commands ask of the running pool. Only who can read the
//! control file has the token.

use super::server::{Reply, Request};
use super::{Api, bearer};
use crate::secret::Secret;
use log::info;
use std::fmt;
use std::net::IpAddr;

/// How commands reach the pool.
pub struct Operator {
    /// What each command must show.
    pub token: Secret,
    /// The address on which the pool listens: a connection from it comes from this host.
    pub address: IpAddr,
    /// Has the program stop; at once, leaving every VM as it is, if the argument says so.
    pub stop: Box<dyn Fn(bool) + Send + Sync>,
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Whether the request shows the token of this start.
pub(super) fn may_command(api: &Api, request: &Request) -> bool {
    let token = bearer(request).map(str::as_bytes);
    api.operator.as_ref().zip(token).is_some_and(|(operator, token)| operator.token.is(token))
}

pub(super) fn refused(api: &Api) -> Reply {
    api.note_refusal("wrong or missing token of a command".into());
    Reply::text(401, "Missing or wrong token").with_header("WWW-Authenticate", "Bearer")
}

pub(super) fn command(api: &Api, request: &Request, command: &str, argument: Option<&str>) -> Reply {
    let Some(operator) = api.operator.as_ref().filter(|_| may_command(api, request)) else {
        return refused(api);
    };
    match (command, argument) {
        ("stop", None | Some("now")) => {
            info!("an operator stops the pool");
            (operator.stop)(argument.is_some());
            Reply::text(200, "The pool is stopping.")
        }
        _ => Reply::text(404, "Not found"),
    }
}
