//! How a request to GitHub is signed.

use super::Error;
use crate::secret::Secret;
use ureq::http::HeaderValue;

/// Who the requests come from.
#[derive(Clone, Debug)]
pub enum Auth {
    /// A personal access token, fine-grained or classic, from `GITHUB_PAT`.
    Pat(Secret),
}

impl Auth {
    /// The value of the `Authorization` header.
    /// <https://docs.github.com/en/rest/authentication/authenticating-to-the-rest-api>
    ///
    /// # Errors
    /// When the credential cannot stand in a header, such as one with a line
    /// break in it.
    pub(super) fn authorization(&self) -> Result<HeaderValue, Error> {
        let Auth::Pat(token) = self;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
            Error::Failed(
                "the token in GITHUB_PAT holds a character that no token has (a line break?): copy it again"
                    .to_owned(),
            )
        })?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// What the credential is called in an error.
    pub(super) fn name(&self) -> &'static str {
        let Auth::Pat(_) = self;
        "the token in GITHUB_PAT"
    }

    /// What it takes to manage the runners of the organisation, or of the
    /// repository.
    /// <https://docs.github.com/en/rest/authentication/permissions-required-for-fine-grained-personal-access-tokens>
    pub(super) fn needs(&self, repository: bool) -> &'static str {
        let Auth::Pat(_) = self;
        if repository {
            "\"Administration: write\" on the repository (fine-grained token) or the scope repo (classic token)"
        } else {
            "\"Self-hosted runners: write\" in the organization (fine-grained token) \
             or the scope admin:org (classic token)"
        }
    }

    /// The text with the credential, should it stand in it, as `***`.
    pub(super) fn redact(&self, text: &str) -> String {
        let Auth::Pat(token) = self;
        match token.expose() {
            "" => text.to_owned(),
            token => text.replace(token, "***"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_with_a_line_break_is_refused_without_showing_it() {
        let refused = Auth::Pat(Secret::new("ghp_abc\nghp_def")).authorization().unwrap_err().to_string();
        assert!(refused.contains("GITHUB_PAT") && !refused.contains("ghp_"), "{refused}");
    }

    #[test]
    fn the_header_does_not_print_the_token() {
        let auth = Auth::Pat(Secret::new("ghp_abc"));
        assert_eq!(auth.authorization().unwrap().as_bytes(), b"Bearer ghp_abc");
        assert!(!format!("{:?} {auth:?}", auth.authorization()).contains("ghp_abc"));
    }
}
