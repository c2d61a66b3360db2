//! Parsers of the settings' values.
//!
//! An error is the rest of a sentence that begins with the value: what is
//! wrong with it, and what to write instead.

use crate::secret::Secret;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

const CONTROL_CHARACTER: &str = "contains a line break or another control character; remove it";

/// Whether this can only be a GitHub token.
pub(super) fn is_token(value: &str) -> bool {
    value.len() >= 20 && TOKEN_PREFIXES.iter().any(|prefix| value.starts_with(prefix))
}

/// A value as a message may show it: not too long, on one line.
pub(super) fn shown(value: &str) -> String {
    const MOST: usize = 80;
    let mut shown: String =
        value.chars().take(MOST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if value.chars().count() > MOST {
        shown.push_str("...");
    }
    shown
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
    let (min, max) = range.clone().into_inner();
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("is not a whole number; use a number from {min} to {max}, without a unit"));
    }
    // Digits that do not fit are a number that is far too large.
    match value.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        Ok(number) if number < min => Err(format!("is too small; use a number from {min} to {max}")),
        _ => Err(format!("is too large; use a number from {min} to {max}")),
    }
}

/// A time in seconds, or with `s`, `m` or `h` after it; the range is in seconds.
pub(super) fn time(value: &str, range: RangeInclusive<u32>) -> Result<Duration, String> {
    let (min, max) = (show_time(*range.start()), show_time(*range.end()));
    let lower = value.to_ascii_lowercase();
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let (digits, unit) = units
        .iter()
        .find_map(|&(suffix, seconds)| Some((lower.strip_suffix(suffix)?.trim_end(), seconds)))
        .unwrap_or((&lower, 1));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "is not a time; use a whole number with s, m or h after it, from {min} to {max}"
        ));
    }
    let seconds = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(unit)).unwrap_or(u32::MAX);
    if range.contains(&seconds) {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let problem = if seconds < *range.start() { "short" } else { "long" };
    Err(format!("is too {problem}; use a time from {min} to {max} (a number alone means seconds)"))
}

/// Seconds in the largest unit that divides them.
pub(super) fn show_time(seconds: u32) -> String {
    match seconds {
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

/// Seconds, also with a decimal point.
pub(super) fn seconds(value: &str, max: u32) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().ok().filter(|seconds| (0.0..=f64::from(max)).contains(seconds));
    // The filter has removed all that `try_from_secs_f64` refuses: negative, too large, not a number.
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| format!("is not a number of seconds from 0 to {max}; use one such as 1.5"))
}

/// An absolute path without a separator at its end.
pub(super) fn path(value: &str, folder: &Path) -> Result<PathBuf, String> {
    if value.starts_with(r"\\?\") || value.starts_with(r"\\.\") {
        return Err(r"is a device path; write the plain path, such as C:\vms".into());
    }
    if value.chars().any(|c| c.is_control() || r#""*?<>|"#.contains(c)) {
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
    if value.chars().any(char::is_control) {
        return Err(CONTROL_CHARACTER.into());
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
    } else if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        "contains a space, a line break or a control character, which no token has; copy the token again"
    } else if !value.is_ascii() {
        "contains a character that is not ASCII, which no token has; copy the token again"
    } else if is_placeholder(value) {
        "is only a placeholder; create a token at https://github.com/settings/tokens"
    } else {
        return Ok(Secret::new(value));
    };
    Err(problem.into())
}

pub(super) fn webhook_secret(value: &str, mock: bool) -> Result<Secret, String> {
    if !mock && (is_placeholder(value) || value.trim().is_empty()) {
        return Err(
            "is a placeholder that anyone can guess; use at least 16 random characters, at GitHub too".into(),
        );
    }
    line(value).map(Secret::new)
}

/// The names of owner and repository in a URL or in `owner/repository`.
fn names_in(value: &str) -> Vec<&str> {
    let path = match value.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => value.strip_prefix("github.com/").unwrap_or(value),
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    // Web addresses of organizations' pages are /orgs/NAME/...
    if value.contains("://") && matches!(names.first(), Some(&("orgs" | "organizations"))) {
        names.remove(0);
        names.truncate(1);
    }
    names.truncate(2);
    if let Some(last) = names.last_mut() {
        *last = last.strip_suffix(".git").unwrap_or(last);
    }
    let usable = |name: &&str| is_org(name) || is_repo(name);
    if names.iter().all(usable) { names } else { Vec::new() }
}

fn is_org(name: &str) -> bool {
    // `_` comes before the short code of an enterprise with managed users.
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    letters && !name.is_empty() && !name.starts_with('-') && name.len() <= 100
}

fn is_repo(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    letters && !matches!(name, "" | "." | "..") && !name.ends_with(".git") && name.len() <= 100
}

pub(super) fn org(value: &str) -> Result<String, String> {
    if is_org(value) {
        return Ok(value.into());
    }
    Err(match names_in(value.trim_start_matches('@'))[..] {
        [org, repo] => format!(
            "names a repository too; write GITHUB_ORG={org} and, for that repository only, GITHUB_REPO={repo}"
        ),
        [org] if is_org(org) => format!("is more than the name; write GITHUB_ORG={org}"),
        _ => {
            "is not the name of an organization or user; write only the name, in letters, digits and hyphens"
                .into()
        }
    })
}

pub(super) fn repo(value: &str) -> Result<String, String> {
    if is_repo(value) {
        return Ok(value.into());
    }
    Err(match names_in(value)[..] {
        [org, repo] => format!("names the owner too; write GITHUB_ORG={org} and GITHUB_REPO={repo}"),
        [repo] => format!("is more than the name; write GITHUB_REPO={repo}"),
        _ => "is not the name of a repository; write only the name, in letters, digits, `-`, `_` and `.`"
            .into(),
    })
}

/// The parts of an http or https URL.
struct UrlParts<'a> {
    https: bool,
    /// With the port, if there is one.
    authority: &'a str,
    /// Without port and brackets.
    host: &'a str,
    /// Empty, or with a slash at its start and none at its end.
    path: &'a str,
}

fn split_url(url: &str) -> Result<UrlParts<'_>, String> {
    let no_url = || "is not a URL; write one such as https://HOST/api/v3".to_owned();
    let (scheme, rest) = url
        .split_once("://")
        .ok_or("does not begin with https://; write the whole URL, such as https://HOST/api/v3")?;
    let https = scheme.eq_ignore_ascii_case("https");
    if !https && !scheme.eq_ignore_ascii_case("http") {
        return Err("is neither an https nor an http URL; write https://HOST/api/v3".into());
    }
    if rest.chars().any(|c| !c.is_ascii_graphic() || r#""<>\^`{|}"#.contains(c)) {
        return Err("contains a character that no URL has; remove it".into());
    }
    if rest.contains(['?', '#']) {
        return Err("contains a `?` or `#`; remove it and what follows".into());
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("contains a user name; remove it, and put the token in GITHUB_PAT".into());
    }
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, port) = bracketed.split_once(']').ok_or_else(no_url)?;
        host.parse::<Ipv6Addr>().map_err(|_| no_url())?;
        (host, port.strip_prefix(':').or(port.is_empty().then_some("1")).ok_or_else(no_url)?)
    } else {
        let (host, port) = authority.split_once(':').unwrap_or((authority, "1"));
        let is_name = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if host.is_empty() || !is_name {
            return Err(no_url());
        }
        (host, port)
    };
    number(port, 1..=65_535).map_err(|_| "has a port that is not a number from 1 to 65535; correct it")?;
    Ok(UrlParts { https, authority, host, path: path.trim_end_matches('/') })
}

/// Whether a URL's host, with or without brackets, is this machine itself.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn api_url(value: &str) -> Result<String, String> {
    let url = split_url(value)?;
    if !url.https && !is_loopback(url.host) {
        return Err("is not encrypted, so the token could be read on the network; write https://".into());
    }
    if ["github.com", "www.github.com"].iter().any(|host| host.eq_ignore_ascii_case(url.host)) {
        return Err(
            "is GitHub's website, not its API; write https://api.github.com, or remove the setting".into()
        );
    }
    let scheme = if url.https { "https" } else { "http" };
    Ok(format!("{scheme}://{}{}", url.authority.to_ascii_lowercase(), url.path))
}

/// Whether a parsed URL has the form of an API's at GitHub, in GitHub
/// Enterprise Cloud (api.SUBDOMAIN.ghe.com) or in GitHub Enterprise Server.
/// <https://docs.github.com/en/enterprise-server@latest/rest/using-the-rest-api/getting-started-with-the-rest-api>
pub(super) fn is_usual_api_url(url: &str) -> bool {
    split_url(url)
        .is_ok_and(|url| url.path == "/api/v3" || url.host.starts_with("api.") || is_loopback(url.host))
}

pub(super) fn name_prefix(value: &str) -> Result<String, String> {
    if let Some(bad) = value.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c)) {
        let bad = shown(&bad.to_string());
        return Err(format!("contains `{bad}`; use only letters, digits, `-`, `_` and `.`"));
    }
    if value.starts_with('.') {
        return Err("begins with a dot; begin it with a letter or digit".into());
    }
    if value.len() > NAME_PREFIX_MAX {
        return Err(format!("is too long; use at most {NAME_PREFIX_MAX} characters"));
    }
    Ok(value.into())
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

pub(super) fn orchestrator_ip(value: &str, mock: bool) -> Result<IpAddr, String> {
    let problem = match value.parse::<Ipv4Addr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() => "is not a host's address",
        Ok(ip) if ip.is_loopback() && !mock => "would mean the VM itself",
        Ok(ip) => return Ok(IpAddr::V4(ip)),
        Err(_) if value.trim_matches(['[', ']']).parse::<Ipv6Addr>().is_ok() => "is an IPv6 address",
        Err(_) if value.contains("://") => "is a URL",
        Err(_) if value.parse::<SocketAddrV4>().is_ok() => "contains a port, which belongs in PORT",
        Err(_) if value.bytes().all(|b| b.is_ascii_digit() || b == b'.') => "is not an IPv4 address",
        Err(_) => {
            "is not an IPv4 address (a host name does not work, since a VM may not be able to resolve it)"
        }
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
