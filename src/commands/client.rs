//! The running pool, as a command reaches it.

use super::{PROGRAM, source};
use crate::app::Failure;
use crate::control::{self, Control, loopback_agent};
use serde_json::Value;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The running pool.
pub(super) struct Client {
    path: PathBuf,
    control: Control,
    agent: ureq::Agent,
}

/// Why the pool did not answer as wanted.
pub(super) enum Error {
    /// It does not answer at all.
    Silent(String),
    /// It refuses, in a sentence for the user.
    Refused(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let (Error::Silent(why) | Error::Refused(why)) = error;
        Failure::Failed(why)
    }
}

impl Client {
    /// The pool whose folder this is.
    pub fn find() -> Result<Client, Failure> {
        let (storage, simulated) = source()?.storage_path().map_err(Failure::Refused)?;
        let path = control::path(&storage, simulated);
        match control::read(&path) {
            Ok(control) => Ok(Client { path, control, agent: loopback_agent() }),
            Err(err) => Err(Failure::Failed(unreadable(&err, &path, &storage))),
        }
    }

    /// Where the pool listens.
    pub fn url(&self) -> &str {
        &self.control.url
    }

    /// What `/api/status` says.
    pub fn status(&self) -> Result<Value, Error> {
        let text = self.status_text()?;
        serde_json::from_str(&text)
            .map_err(|err| Error::Refused(format!("the pool's status cannot be read: {err}")))
    }

    /// The same as text.
    pub fn status_text(&self) -> Result<String, Error> {
        let request = self.agent.get(format!("{}/api/status", self.control.url));
        self.answer(request.header("Authorization", self.bearer()).call())
    }

    /// Gives a command, and returns what the pool says to it.
    pub fn command(&self, command: &str) -> Result<String, Error> {
        let request = self.agent.post(format!("{}/api/{command}", self.control.url));
        self.answer(request.header("Authorization", self.bearer()).send_empty())
    }

    /// Whether the pool has taken its file away, or another one has replaced it.
    pub fn has_left(&self) -> bool {
        !control::read(&self.path).is_ok_and(|now| now.token == self.control.token)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.control.token.expose())
    }

    fn answer(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<String, Error> {
        let url = &self.control.url;
        let answer = answer.and_then(|mut answer| {
            let text = answer.body_mut().read_to_string()?;
            Ok((answer.status().as_u16(), text))
        });
        match answer {
            Ok((200, text)) => Ok(text),
            Ok((401, _)) => {
                Err(Error::Refused(format!("{url} is another program or pool: this one has ended")))
            }
            Ok((_, text)) => Err(Error::Refused(text)),
            Err(err) => Err(Error::Silent(format!(
                "the pool does not answer on {url} ({err}): it was killed, or it hangs; start it again"
            ))),
        }
    }
}

/// Why there is no pool to command.
fn unreadable(err: &io::Error, path: &Path, storage: &Path) -> String {
    match err.kind() {
        ErrorKind::NotFound => format!(
            "no pool runs with VM_STORAGE_PATH {}: `{PROGRAM}` or `{PROGRAM} service start` starts it",
            storage.display()
        ),
        ErrorKind::PermissionDenied => format!(
            "{} cannot be read by this account: run the command elevated (as administrator)",
            path.display()
        ),
        _ => format!("{} cannot be read ({err}): restart the pool", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pool_and_no_rights_are_told_apart() {
        let said =
            |kind: ErrorKind| unreadable(&kind.into(), Path::new("s/control/pool.json"), Path::new("s"));
        assert!(said(ErrorKind::NotFound).starts_with("no pool runs with VM_STORAGE_PATH s"));
        let denied = said(ErrorKind::PermissionDenied);
        assert!(denied.contains("pool.json") && denied.contains("run the command elevated"), "{denied}");
    }
}
