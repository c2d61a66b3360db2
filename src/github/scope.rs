//! Whose runners: an organization's or one repository's, at one GitHub.

use crate::config::GitHubConfig;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a runner is registered. GitHub's runner ids count per scope, so an id
/// means nothing without it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// Base of the REST API, without a slash at its end.
    pub api_url: String,
    /// The organization, or the owner of the repository.
    pub owner: String,
    /// The repository, for runners of one repository only.
    pub repository: Option<String>,
}

impl GitHubConfig {
    /// Where new runners are registered.
    pub fn scope(&self) -> Scope {
        Scope { api_url: self.api_url.clone(), owner: self.org.clone(), repository: self.repo.clone() }
    }
}

impl Scope {
    /// The part of a REST path that names the scope:
    /// `/orgs/ORG` or `/repos/OWNER/REPOSITORY`, percent-encoded.
    ///
    /// <https://docs.github.com/en/rest/actions/self-hosted-runners>
    pub(super) fn path(&self) -> String {
        match &self.repository {
            Some(repository) => format!("/repos/{}/{}", encode(&self.owner), encode(repository)),
            None => format!("/orgs/{}", encode(&self.owner)),
        }
    }

    /// The page of the organization or repository, as people and `config.cmd` want it.
    ///
    /// <https://docs.github.com/en/enterprise-server@latest/rest/using-the-rest-api/getting-started-with-the-rest-api>
    pub fn web_url(&self) -> String {
        let server = match self.api_url.strip_suffix("/api/v3") {
            Some(server) => server.into(),
            // Also GitHub Enterprise Cloud with data residency: https://api.SUBDOMAIN.ghe.com
            None => self.api_url.replacen("://api.", "://", 1),
        };
        match &self.repository {
            Some(repository) => format!("{server}/{}/{repository}", self.owner),
            None => format!("{server}/{}", self.owner),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.repository {
            Some(repository) => write!(f, "repository {}/{repository}", self.owner),
            None => write!(f, "organization {}", self.owner),
        }
    }
}

/// Percent-encodes what is not unreserved in a URL (RFC 3986, section 2.3).
pub(super) fn encode(text: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte| if unreserved(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

/// A URL or path with one more part of its query.
pub(super) fn with_query(url: &str, part: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}{part}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_an_organization_follows_from_the_apis_address() {
        let page = |api_url: &str, repository: Option<&str>| {
            Scope { api_url: api_url.into(), owner: "octo".into(), repository: repository.map(str::to_owned) }
                .web_url()
        };
        assert_eq!(page("https://api.github.com", None), "https://github.com/octo");
        assert_eq!(page("https://api.octo.ghe.com", Some("app")), "https://octo.ghe.com/octo/app");
        assert_eq!(page("https://github.example.com/api/v3", None), "https://github.example.com/octo");
    }

    #[test]
    fn reserved_characters_and_other_scripts_are_percent_encoded() {
        assert_eq!(encode("runner-1_a.b~"), "runner-1_a.b~");
        assert_eq!(encode("a b/c?d&e#\u{e9}"), "a%20b%2Fc%3Fd%26e%23%C3%A9");
    }
}
