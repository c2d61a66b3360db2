//! What GitHub's refusals mean, in words for the operator.

use super::Error;
use super::auth::Auth;
use super::http::{Http, Request, Response};
use super::pat;

/// The error for a response that is not the expected one.
pub(super) fn refusal(request: &Request, response: &Response, http: &Http) -> Error {
    let (scope, host) = (request.scope, &http.host);
    let (token, needs) = match &http.auth {
        Auth::Pat(_) => (pat::NAME.to_owned(), needs(request)),
        Auth::App(app) => (format!("the GitHub App {}", app.id), app_needs(request)),
    };
    let why = match response.status {
        401 if matches!(http.auth, Auth::App(_)) => {
            format!("GitHub refuses the token that it has given {token} (401)")
        }
        401 => format!(
            "GitHub refuses {token} (401): renew it and set GITHUB_PAT to the new one (in .env: no restart is needed)"
        ),
        403 if response.header("x-github-sso").is_some_and(|v| v.starts_with("required")) => format!(
            "{token} is not authorized for single sign-on to the {scope} (403): authorize it in GitHub's settings, \
             under personal access tokens"
        ),
        403 => format!("{token} does not have the right to do this in the {scope} (403): it needs {needs}"),
        404 if scope.repository.is_some() => format!(
            "GitHub does not find the {scope}, or {token} has no access to it (404): check GITHUB_ORG and GITHUB_REPO, \
             and that it has {needs}"
        ),
        404 => format!(
            "GitHub does not find the {scope}, or {token} has no access to it (404): check GITHUB_ORG, and that it \
             has {needs} (a personal account has no runners of its own: set GITHUB_REPO too)"
        ),
        422 => "GitHub does not accept the request (422)".to_owned(),
        status @ 300..=399 => {
            format!(
                "GitHub redirects to another place ({status}): check GITHUB_API_URL, GITHUB_ORG and GITHUB_REPO"
            )
        }
        status @ 500.. if *host == "api.github.com" => {
            format!("GitHub returned a server error ({status}): see https://www.githubstatus.com")
        }
        status @ 500.. => format!("{host} returned a server error ({status})"),
        status => format!("GitHub answered {status}, which is not expected"),
    };
    refused(request, response, &why)
}

/// The error of a refused request, for this reason.
pub(super) fn refused(request: &Request, response: &Response, why: &str) -> Error {
    let said = response.said();
    let text = format!("{}: {why}{said}", request.what);
    match response.status {
        401 | 403 | 404 => Error::Refused(text),
        _ => Error::Failed(text),
    }
}

/// What the token needs for a request.
/// <https://docs.github.com/en/rest/authentication/permissions-required-for-fine-grained-personal-access-tokens>
fn needs(request: &Request) -> &'static str {
    if request.path.contains("/actions/runs") {
        "\"Actions: read\" on the repository (fine-grained token) or the scope repo (classic token)"
    } else if request.scope.repository.is_some() {
        "\"Administration: write\" on the repository (fine-grained token) or the scope repo (classic token), and its \
         owner must be an administrator of the repository"
    } else {
        "\"Self-hosted runners: write\" in the organization (fine-grained token) or the scope admin:org (classic \
         token), and its owner must be an administrator of the organization"
    }
}

/// What a GitHub App needs for a request.
fn app_needs(request: &Request) -> &'static str {
    if request.path.contains("/actions/runs") {
        "the permission \"Actions: read\""
    } else if request.scope.repository.is_some() {
        "the permission \"Administration: read and write\""
    } else {
        "the permission \"Self-hosted runners: read and write\""
    }
}
