//! A guest without Windows: makes the same requests to the pool, one for one, as
//! `packer/guest/pool.ps1` makes in a VM. `tests/guest.rs` compares the two, so
//! that neither can change without the other.

use serde_json::{Value, json};
use std::time::Duration;

/// What the guest's User-Agent says of the image that it runs in.
pub struct Image {
    /// Version of the GitHub Actions runner, like `2.338.0`.
    pub runner_version: String,
    /// Day of the build, `yyyy-mm-dd`.
    pub built: String,
    /// Day on which an evaluation edition of Windows ends, `yyyy-mm-dd`.
    pub windows_evaluation_end: Option<String>,
}

impl Image {
    /// The User-Agent of a guest in this image.
    pub fn user_agent(&self) -> String {
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
    /// HTTP status, or 0 where the pool could not be reached or did not answer.
    pub status: u16,
    /// Body of an answer with status 200; else empty.
    pub body: String,
}

/// One VM's guest.
pub struct Guest {
    url: String,
    vm_name: String,
    secret: String,
    agent: ureq::Agent,
}

impl Guest {
    /// A guest with the three values that the host gives its VM, in an image of no
    /// particular age.
    pub fn new(url: &str, vm_name: &str, secret: &str) -> Guest {
        let image = Image {
            runner_version: "2.338.0".into(),
            built: "2026-11-01".into(),
            windows_evaluation_end: None,
        };
        Guest::in_image(url, vm_name, secret, &image)
    }

    /// A guest in a particular image.
    pub fn in_image(url: &str, vm_name: &str, secret: &str, image: &Image) -> Guest {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(15)))
            .user_agent(image.user_agent())
            .proxy(None)
            .build()
            .into();
        Guest { url: url.trim_end_matches('/').into(), vm_name: vm_name.into(), secret: secret.into(), agent }
    }

    /// `Get-RunnerConfig`
    pub fn fetch_config(&self) -> Answer {
        answer(self.agent.get(self.address("runner-config")).header("Authorization", self.bearer()).call())
    }

    /// `Send-RunnerStarted`
    pub fn report_started(&self, run_id: &str, job: &str, repository: &str) -> Answer {
        self.post("runner-started", &json!({ "run_id": run_id, "job": job, "repository": repository }))
    }

    /// `Send-RunnerComplete`
    pub fn report_complete(&self, exit_code: i32) -> Answer {
        self.post("runner-complete", &json!({ "exit_code": exit_code }))
    }

    fn post(&self, route: &str, body: &Value) -> Answer {
        let request = self.agent.post(self.address(route)).header("Authorization", self.bearer());
        answer(request.content_type("application/json").send(body.to_string()))
    }

    fn address(&self, route: &str) -> String {
        format!("{}/api/{route}/{}", self.url, self.vm_name)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }
}

fn answer(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    let unreachable = Answer { status: 0, body: String::new() };
    let Ok(mut response) = result else { return unreachable };
    let status = response.status().as_u16();
    if status != 200 {
        return Answer { status, body: String::new() };
    }
    match response.body_mut().read_to_string() {
        Ok(body) => Answer { status, body },
        Err(_) => unreachable,
    }
}
