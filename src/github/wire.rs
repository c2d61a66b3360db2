//! GitHub's JSON, as much of it as is read.
//!
//! <https://docs.github.com/en/rest/actions/self-hosted-runners>,
//! <https://docs.github.com/en/rest/actions/self-hosted-runner-groups>,
//! <https://docs.github.com/en/rest/actions/workflow-runs> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs>

use super::Runner;
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct JitConfig {
    pub runner: RunnerId,
    pub encoded_jit_config: String,
}

#[derive(Deserialize)]
pub(super) struct RunnerId {
    pub id: u64,
}

#[derive(Deserialize)]
pub(super) struct RegistrationToken {
    pub token: String,
    pub expires_at: Option<String>,
}

pub(super) trait Page: for<'de> Deserialize<'de> {
    type Item;
    /// How many there are on all pages, and those on this one.
    fn take(self) -> (u64, Vec<Self::Item>);
}

#[derive(Deserialize)]
pub(super) struct RunnersPage {
    pub total_count: u64,
    pub runners: Vec<RunnerItem>,
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

impl Page for RunnersPage {
    type Item = RunnerItem;
    fn take(self) -> (u64, Vec<RunnerItem>) {
        (self.total_count, self.runners)
    }
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
pub(super) struct GroupsPage {
    pub total_count: u64,
    pub runner_groups: Vec<Group>,
}

#[derive(Deserialize)]
pub(super) struct Group {
    pub id: u64,
    pub name: String,
}

impl Page for GroupsPage {
    type Item = Group;
    fn take(self) -> (u64, Vec<Group>) {
        (self.total_count, self.runner_groups)
    }
}

#[derive(Deserialize)]
pub(super) struct RunsPage {
    pub workflow_runs: Vec<Run>,
}

#[derive(Deserialize)]
pub(super) struct Run {
    pub id: u64,
}

#[derive(Deserialize)]
pub(super) struct JobsPage {
    pub total_count: u64,
    pub jobs: Vec<Job>,
}

#[derive(Deserialize)]
pub(super) struct Job {
    pub id: u64,
    pub status: String,
    pub labels: Vec<String>,
}

impl Page for JobsPage {
    type Item = Job;
    fn take(self) -> (u64, Vec<Job>) {
        (self.total_count, self.jobs)
    }
}

/// `temp_download_token`, which an Enterprise Server sends too, is left unread.
#[derive(Deserialize)]
pub(super) struct Download {
    pub os: String,
    pub architecture: String,
    pub download_url: String,
    pub filename: String,
}

impl Download {
    /// From `actions-runner-win-x64-2.328.0.zip`, or from the `/v2.328.0/` of its address.
    pub fn version(&self) -> Option<String> {
        let in_name =
            self.filename.strip_prefix("actions-runner-win-x64-").and_then(|rest| rest.strip_suffix(".zip"));
        let in_url = self.download_url.split('/').filter_map(|part| part.strip_prefix('v'));
        let is_version = |v: &&str| {
            v.split('.').count() == 3
                && v.split('.').all(|n| (1..=6).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
        };
        in_name.into_iter().chain(in_url).find(is_version).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn download(filename: &str, download_url: &str) -> Download {
        Download {
            os: "win".to_owned(),
            architecture: "x64".to_owned(),
            download_url: download_url.to_owned(),
            filename: filename.to_owned(),
        }
    }

    #[test]
    fn the_version_stands_in_the_file_name_or_else_in_the_address() {
        let url = "https://github.com/actions/runner/releases/download/v2.329.1/actions-runner.zip";
        let version = |name, url| download(name, url).version();
        assert_eq!(version("actions-runner-win-x64-2.328.0.zip", url).as_deref(), Some("2.328.0"));
        assert_eq!(version("runner.zip", url).as_deref(), Some("2.329.1"));
        assert_eq!(version("actions-runner-win-x64-beta.zip", "https://example.com/vx/latest"), None);
    }
}
