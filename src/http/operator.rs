//! What an operator's commands ask of the running pool. Only who can read the
//! control file has the token.

use super::server::{Reply, Request};
use super::{Api, bearer};
use crate::pool::operator::{NotRecycled, Recycled};
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
        ("drain", None) => {
            info!("an operator drains the pool: it makes no VMs until it is resumed");
            api.pool.drain();
            Reply::text(200, "The pool is draining: idle VMs retire, none is made, and jobs go on.")
        }
        ("resume", None) => {
            info!("an operator resumes the pool");
            api.pool.resume();
            Reply::text(200, "The pool makes VMs again.")
        }
        ("recycle", vm) => recycle(api, vm),
        _ => Reply::text(404, "Not found"),
    }
}

fn recycle(api: &Api, vm: Option<&str>) -> Reply {
    let named = vm.unwrap_or("every idle VM");
    match api.pool.recycle(vm) {
        Ok(Recycled { vms, retries }) => {
            info!("an operator recycles {named}");
            let vms = match (vm, vms) {
                (_, 0) => None,
                (Some(vm), _) => Some(format!("{vm} retires and is replaced.")),
                (None, 1) => Some("1 idle VM is replaced.".into()),
                (None, _) => Some(format!("{vms} idle VMs are replaced, one after the other.")),
            };
            let retries = match retries {
                0 => None,
                1 => Some("1 slot tries again now.".to_owned()),
                _ => Some(format!("{retries} slots try again now.")),
            };
            let done: Vec<String> = vms.into_iter().chain(retries).collect();
            Reply::text(
                200,
                if done.is_empty() { "No VM is idle, and no slot fails.".into() } else { done.join(" ") },
            )
        }
        Err(NotRecycled::NotFound) => {
            Reply::text(404, format!("No slot has a VM named {}: see `status`", named.escape_debug()))
        }
        Err(NotRecycled::HasJob) => {
            Reply::text(409, format!("{named} has a job, after which it is replaced anyway"))
        }
        Err(NotRecycled::NotYet) => Reply::text(409, format!("{named} is not there yet: see `status`")),
        Err(NotRecycled::NoVmsMade) => {
            Reply::text(409, "The pool makes no VMs now, since it drains or stops: see `status`")
        }
    }
}
