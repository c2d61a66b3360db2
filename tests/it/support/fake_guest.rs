//! A fake guest: sends the pool the requests that `packer/guest/pool.ps1` sends from a
//! VM. Both are compared with `tests/data/guest-requests.json`: this one by
//! `tests/it/fake_guest.rs`, the script by `tests/powershell`.

use super::http;
use hyperv_runner_pool::secret::{Secret, vm_proof};
use serde_json::{Value, json};

/// What the guest's User-Agent says of the image that it runs in.
#[derive(Clone, Debug)]
pub struct Image {
    /// Version of the GitHub Actions runner, like `2.338.0`.
    pub runner_version: String,
    /// Day of the build, `yyyy-mm-dd`.
    pub built: String,
    /// Day on which an evaluation edition of Windows ends, `yyyy-mm-dd`.
    pub windows_evaluation_end: Option<String>,
}

impl Image {
    fn user_agent(&self) -> String {
        let mut agent =
            format!("hyperv-runner-pool-guest/1 runner/{} image/{}", self.runner_version, self.built);
        if let Some(end) = &self.windows_evaluation_end {
            agent += &format!(" windows-evaluation/{end}");
        }
        agent
    }
}

/// The pool's answer. As in the script, no answer at all is status 0, and the body
/// of a refusal is not looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// One VM's guest, with the three values that the host gives its VM.
#[derive(Clone, Debug)]
pub struct FakeGuest {
    pub url: String,
    pub vm_name: String,
    pub secret: String,
    pub image: Image,
}

impl FakeGuest {
    /// A guest in an image of no particular age.
    pub fn new(url: &str, vm_name: &str, secret: &str) -> FakeGuest {
        let image = Image {
            runner_version: "2.338.0".into(),
            built: "2026-11-01".into(),
            windows_evaluation_end: None,
        };
        FakeGuest { url: url.into(), vm_name: vm_name.into(), secret: secret.into(), image }
    }

    /// `Get-RunnerConfig`
    pub fn fetch_config(&self) -> Answer {
        self.send("GET", "runner-config", None)
    }

    /// `Send-RunnerStarted`
    pub fn report_started(&self) -> Answer {
        let body = json!({ "run_id": "42", "job": "build", "repository": "acme/widgets" });
        self.send("POST", "runner-started", Some(&body))
    }

    /// `Send-RunnerComplete`
    pub fn report_complete(&self) -> Answer {
        self.report_exit(0)
    }

    /// The same, with the listener's exit code.
    pub fn report_exit(&self, exit_code: i64) -> Answer {
        self.send("POST", "runner-complete", Some(&json!({ "exit_code": exit_code })))
    }

    /// What it sends as `Authorization` with a request.
    pub fn bearer(&self, method: &str, path: &str) -> String {
        format!("Bearer {}", vm_proof(&Secret::new(&*self.secret), method, path))
    }

    fn send(&self, method: &str, route: &str, body: Option<&Value>) -> Answer {
        let path = format!("/api/{route}/{}", self.vm_name);
        let (bearer, agent) = (self.bearer(method, &path), self.image.user_agent());
        let mut headers = vec![("Authorization", &*bearer), ("User-Agent", &agent)];
        if body.is_some() {
            headers.push(("Content-Type", "application/json"));
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        match http::try_request(&self.url, method, &path, &headers, body.as_bytes()) {
            Some(answer) if answer.status == 200 => Answer { status: 200, body: answer.body },
            answer => Answer { status: answer.map_or(0, |answer| answer.status), body: String::new() },
        }
    }
}
