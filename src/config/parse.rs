//! Parsers of the settings' values.
//!
//! An error is the rest of a sentence that begins with the value: what is
//! wrong with it, and what to write instead.

use crate::secret::Secret;
use crate::text::one_line;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::Uri;

/// How GitHub's tokens begin.
/// <https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/>
pub(super) const TOKEN_PREFIXES: [&str; 6] = ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"];

/// The most characters in RUNNER_NAME_PREFIX.
pub(super) const NAME_PREFIX_MAX: usize = 40;

/// The labels of every runner.
const FIXED_LABELS: [&str; 4] = ["self-hosted", "Windows", "X64", "ephemeral"];

/// How many labels GitHub takes in one JIT configuration.
/// <https://docs.github.com/en/rest/actions/self-hosted-runners>
const LABELS_MAX: usize = 100;

/// Whether this can only be a GitHub token.
pub(super) fn is_token(value: &str) -> bool {
    value.len() >= 20 && TOKEN_PREFIXES.iter().any(|prefix| value.starts_with(prefix))
}

/// A value as a message may show it: not too long, on one line.
pub(super) fn shown(value: &str) -> String {
    one_line(value, 80)
}

pub(super) fn flag(value: &str) -> Result<bool, String> {
    match &value.to_ascii_lowercase()[..] {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

/// The index of the chosen word.
pub(super) fn choice(value: &str, words: &[&str]) -> Result<usize, String> {
    let chosen = words.iter().position(|word| word.eq_ignore_ascii_case(value));
    chosen.ok_or_else(|| format!("must be one of {}", words.join(", ")))
}

pub(super) fn number(value: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let (min, max) = (range.start(), range.end());
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("is not a whole number from {min} to {max}, without a unit; use one"))
}

/// A time in seconds, or with `s`, `m` or `h` after it; the range is in seconds.
pub(super) fn time(value: &str, range: RangeInclusive<u32>) -> Result<Duration, String> {
    let (min, max) = (*range.start(), *range.end());
    let lower = value.to_ascii_lowercase();
    let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (number, unit) = units
        .iter()
        .find_map(|&(suffix, seconds)| Some((lower.strip_suffix(suffix)?.trim_end(), seconds)))
        .unwrap_or((&lower, 1.0));
    let seconds = number.parse::<f64>().ok().map(|number| number * unit);
    let seconds = seconds.filter(|seconds| (f64::from(min)..=f64::from(max)).contains(seconds));
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        let (min, max) = (show_time(min), show_time(max));
        format!("is not a time from {min} to {max}; use a number with s, m or h after it, or of seconds")
    })
}

/// Seconds in the largest unit that divides them.
pub(super) fn show_time(seconds: u32) -> String {
    match seconds {
        s if s == 0 || s % 60 != 0 => format!("{s}s"),
        s if s % 3600 != 0 => format!("{}m", s / 60),
        s => format!("{}h", s / 3600),
    }
}

/// An absolute path without a separator at its end.
pub(super) fn path(value: &str, folder: &Path) -> Result<PathBuf, String> {
    if value.starts_with(r"\\?\") || value.starts_with(r"\\.\") {
        return Err(r"is a device path; write the plain path, such as C:\vms".into());
    }
    if value.chars().any(|c| c.is_control() || "\"*?<>|\u{fffd}".contains(c)) {
        return Err(r#"contains a character that no Windows path can have (" * ? < > | or a control character); remove it"#
            .into());
    }
    let joined = folder.join(value);
    if !joined.is_absolute() {
        return Err(r"is relative to a drive's current folder; write the whole path, such as C:\vms".into());
    }
    // On Windows this also resolves `..` and turns `/` into `\`; collecting the
    // components then drops a separator at the end.
    let absolute = std::path::absolute(&joined).map_err(|e| format!("is not a usable path: {e}"))?;
    Ok(absolute.components().collect())
}

pub(super) fn vhdx(path: PathBuf) -> Result<PathBuf, String> {
    match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("vhdx") => Ok(path),
        _ => Err("is not the path of a .vhdx file; write the path of the template disk itself".into()),
    }
}

/// A name that may contain anything that fits on a line.
pub(super) fn line(value: &str) -> Result<String, String> {
    if value.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
        return Err(
            "contains a line break, another control character or what is not Unicode; remove it".into()
        );
    }
    Ok(value.into())
}

/// Whether this is only what an example or a manual shows.
fn is_placeholder(value: &str) -> bool {
    let word: String =
        value.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let is_run_of_x = |text: &str| text.len() > 2 && text.bytes().all(|b| b == b'x');
    let known = "changeme changethis replaceme secret mysecret webhooksecret mocksecret password token example \
                 itsasecrettoeverybody";
    known.split(' ').any(|known| known == word)
        || word.starts_with("your")
        || (value.starts_with('<') && value.ends_with('>'))
        || is_run_of_x(&word)
        || is_run_of_x(word.strip_prefix("ghp").or(word.strip_prefix("githubpat")).unwrap_or_default())
}

pub(super) fn pat(value: &str) -> Result<Secret, String> {
    let problem = if value.starts_with(['"', '\'']) {
        "has quotes around it; remove them"
    } else if !value.bytes().all(|b| b.is_ascii_graphic()) {
        "contains a space, a line break or a character that is not ASCII, which no token has; copy the token again"
    } else if is_placeholder(value) {
        "is only a placeholder; create a token at https://github.com/settings/tokens"
    } else {
        return Ok(Secret::new(value));
    };
    Err(problem.into())
}

/// The client ID of a GitHub App, such as `Iv23liAbCdEfGhIjKlMn`, or its number.
pub(super) fn app_id(value: &str) -> Result<String, String> {
    if is_name(value, "._-") && value.len() <= 40 && !is_placeholder(value) {
        return Ok(value.into());
    }
    Err("is not the ID of a GitHub App; write the Client ID or the App ID from the App's settings page"
        .into())
}

pub(super) fn webhook_secret(value: &str, mock: bool) -> Result<Secret, String> {
    if !mock && is_placeholder(value) {
        return Err(
            "is a placeholder that anyone can guess; use at least 16 random characters, at GitHub too".into(),
        );
    }
    line(value).map(Secret::new)
}

/// Whether there are only letters, digits and these in it.
fn is_name(value: &str, others: &str) -> bool {
    value.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

pub(super) fn org(value: &str) -> Result<String, String> {
    // `_` comes before the short code of an enterprise with managed users.
    if is_name(value, "-_") && !value.starts_with('-') && value.len() <= 100 {
        return Ok(value.into());
    }
    Err("is not the name of an organization or user; write only the name, such as acme for \
         https://github.com/acme"
        .into())
}

pub(super) fn repo(value: &str) -> Result<String, String> {
    if is_name(value, "-_.") && !matches!(value, "." | "..") && !value.ends_with(".git") && value.len() <= 100
    {
        return Ok(value.into());
    }
    Err("is not the name of a repository; write only the name, such as widgets for \
         https://github.com/acme/widgets, and its owner in GITHUB_ORG"
        .into())
}

/// Whether a URL's host, with or without brackets, is this machine itself.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn api_url(value: &str) -> Result<String, String> {
    let wrong = "is not the URL of an API; write one such as https://HOST/api/v3";
    let url: Uri = value.parse().map_err(|_| wrong)?;
    let (Some(scheme), Some(host), None) = (url.scheme_str(), url.host(), url.query()) else {
        return Err(wrong.into());
    };
    let authority = match url.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    // They differ by a user name, or by a port that is none.
    let is_plain = url.authority().is_some_and(|given| given.as_str() == authority);
    if !is_plain || !matches!(scheme, "http" | "https") || !value.is_ascii() {
        return Err(wrong.into());
    }
    if scheme == "http" && !is_loopback(host) {
        return Err("is not encrypted, so the token could be read on the network; write https://".into());
    }
    if ["github.com", "www.github.com"].iter().any(|website| website.eq_ignore_ascii_case(host)) {
        return Err(
            "is GitHub's website, not its API; write https://api.github.com, or remove the setting".into()
        );
    }
    Ok(format!("{scheme}://{}{}", authority.to_ascii_lowercase(), url.path().trim_end_matches('/')))
}

/// Host and port of a parsed URL, unless it is at github.com, which is on the
/// internet, or one that no VM reaches (this machine itself; IPv6).
pub(super) fn server_of(url: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    let host = url
        .host()
        .filter(|host| *host != "api.github.com" && !host.starts_with('[') && !is_loopback(host))?;
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    Some(format!("{host}:{port}"))
}

/// Whether a parsed URL has the form of an API's at GitHub, in GitHub
/// Enterprise Cloud (api.SUBDOMAIN.ghe.com) or in GitHub Enterprise Server.
/// <https://docs.github.com/en/enterprise-server@latest/rest/using-the-rest-api/getting-started-with-the-rest-api>
pub(super) fn is_usual_api_url(url: &str) -> bool {
    url.ends_with("/api/v3")
        || url.contains("://api.")
        || url.parse::<Uri>().is_ok_and(|url| url.host().is_some_and(is_loopback))
}

pub(super) fn name_prefix(value: &str) -> Result<String, String> {
    if is_name(value, "-_.") && !value.starts_with('.') && value.len() <= NAME_PREFIX_MAX {
        return Ok(value.into());
    }
    Err(format!(
        "is not fit for file names and runners; use only letters, digits, `-`, `_` and `.`, no dot at the beginning, \
         and at most {NAME_PREFIX_MAX} characters"
    ))
}

/// The fixed labels and then these, each once; GitHub ignores upper and lower case.
pub(super) fn labels(value: &str) -> Result<Vec<String>, String> {
    let mut labels = fixed_labels();
    let mut seen: HashSet<_> = labels.iter().map(|label| label.to_lowercase()).collect();
    for label in value.split(',').map(str::trim) {
        if label.is_empty() {
            return Err("contains an empty label; write one comma between labels and none at the ends".into());
        }
        if label.chars().count() > 256 {
            return Err("contains a label of more than 256 characters; shorten it".into());
        }
        if seen.insert(label.to_lowercase()) {
            labels.push(line(label)?);
        }
    }
    if labels.len() > LABELS_MAX {
        let most = LABELS_MAX - FIXED_LABELS.len();
        return Err(format!("has too many labels; GitHub takes {LABELS_MAX}, so list at most {most}"));
    }
    Ok(labels)
}

pub(super) fn fixed_labels() -> Vec<String> {
    FIXED_LABELS.map(str::to_owned).into()
}

/// Addresses with ports, each once.
pub(super) fn endpoints(value: &str) -> Result<Vec<SocketAddrV4>, String> {
    let mut endpoints = Vec::new();
    for part in value.split(',').map(str::trim) {
        let endpoint = part.parse().ok().filter(|endpoint: &SocketAddrV4| {
            let ip = endpoint.ip();
            endpoint.port() != 0
                && !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
        });
        let endpoint = endpoint.ok_or_else(|| {
            let part = shown(part);
            format!(
                "contains `{part}`, which is not a host's IPv4 address with a port; write pairs such as \
                 192.168.1.20:8443, with one comma between them"
            )
        })?;
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    Ok(endpoints)
}

pub(super) fn orchestrator_ip(value: &str, mock: bool) -> Result<IpAddr, String> {
    let problem = match value.parse::<Ipv4Addr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() => "is not a host's address",
        Ok(ip) if ip.is_loopback() && !mock => "would mean the VM itself",
        Ok(ip) => return Ok(IpAddr::V4(ip)),
        // Nor a host name, since a VM may not be able to resolve it.
        Err(_) => "is not an IPv4 address alone (the port belongs in PORT)",
    };
    Err(format!("{problem}; write only the IPv4 address, such as 192.168.1.10, or remove the setting"))
}

/// VMs reach the pool over IPv4, and an IPv6 socket on Windows takes no IPv4
/// connections.
/// <https://learn.microsoft.com/en-us/windows/win32/winsock/dual-stack-sockets>
pub(super) fn bind(value: &str, mock: bool) -> Result<IpAddr, String> {
    match value.parse() {
        Ok(IpAddr::V6(_)) if !mock => Err(
            "is an IPv6 address, but VMs reach the pool over IPv4; use an IPv4 address, or 0.0.0.0 for all"
                .into(),
        ),
        Ok(ip) => Ok(ip),
        Err(_) => {
            Err("is not an IP address; use one of this host's IPv4 addresses, or 0.0.0.0 for all".into())
        }
    }
}
