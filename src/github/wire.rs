//! GitHub's JSON, as much of it as is read.
//!
//! <https://docs.github.com/en/rest/actions/self-hosted-runners>,
//! <https://docs.github.com/en/rest/actions/self-hosted-runner-groups>,
//! <https://docs.github.com/en/rest/actions/workflow-runs>,
//! <https://docs.github.com/en/rest/actions/workflow-jobs> and
//! <https://docs.github.com/en/rest/apps/apps>

use super::Runner;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
pub(super) struct JitConfig {
    pub runner: Id,
    pub encoded_jit_config: String,
}

/// A runner or a workflow run, of which only the id counts.
#[derive(Deserialize)]
pub(super) struct Id {
    pub id: u64,
}

/// A registration token, or an installation access token.
#[derive(Deserialize)]
pub(super) struct Token {
    pub token: String,
    pub expires_at: Option<String>,
}

/// A GitHub App's installation for an account.
#[derive(Deserialize)]
pub(super) struct Installation {
    pub id: u64,
    /// Each permission's access, such as `write`.
    pub permissions: Map<String, Value>,
    pub suspended_at: Option<String>,
}

/// A page of a listing.
#[derive(Deserialize)]
pub(super) struct Page<T> {
    /// How many there are on all pages.
    pub total_count: u64,
    #[serde(alias = "runners", alias = "runner_groups", alias = "workflow_runs", alias = "jobs")]
    pub items: Vec<T>,
}

#[derive(Deserialize)]
pub(super) struct RunnerItem {
    pub id: u64,
    pub name: String,
    pub status: String,
    pub busy: bool,
    pub labels: Vec<Label>,
}

#[derive(Deserialize)]
pub(super) struct Label {
    pub name: String,
}

impl From<RunnerItem> for Runner {
    fn from(item: RunnerItem) -> Runner {
        Runner {
            id: item.id,
            name: item.name,
            online: item.status == "online",
            busy: item.busy,
            labels: item.labels.into_iter().map(|label| label.name).collect(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Group {
    pub id: u64,
    pub name: String,
}

#[derive(Deserialize)]
pub(super) struct Job {
    pub id: u64,
    pub status: String,
    pub labels: Vec<String>,
}

/// A runner application that can be downloaded.
#[derive(Deserialize)]
pub(super) struct Download {
    pub filename: String,
}

impl Download {
    /// The version in `actions-runner-win-x64-2.328.0.zip`. `None` for another system.
    pub fn version(&self) -> Option<&str> {
        self.filename.strip_prefix("actions-runner-win-x64-")?.strip_suffix(".zip")
    }
}
