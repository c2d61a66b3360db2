//! Whether the image that the VMs start from is about to be too old.
//!
//! GitHub gives no jobs to a runner whose version is more than 30 days behind
//! the newest, and an evaluation edition of Windows ends after 180 days. The
//! guest says what it is made of in the User-Agent of its first request:
//! `hyperv-runner-pool-guest/1 runner/2.330.0 image/2026-01-31
//! windows-evaluation/2026-07-30`.
//!
//! <https://docs.github.com/en/actions/how-tos/manage-runners/self-hosted-runners/use-in-a-workflow#about-automatic-updates>

use crate::date::parse_day;
use serde::Serialize;

/// Days in which a runner that is no longer the newest is not warned of.
const RUNNER_GRACE: i64 = 7;

/// Days after which GitHub drops a runner version that is no longer the newest.
const RUNNER_LIFE: i64 = 30;

/// What a guest says of its image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Image {
    /// The runner's version.
    pub runner_version: Option<String>,
    /// The day the image was built, as `yyyy-mm-dd`.
    pub built: Option<String>,
    /// The day the evaluation edition of Windows ends, as `yyyy-mm-dd`.
    pub windows_evaluation_ends: Option<String>,
}

/// What `/api/status` says of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the guest that booted last is made of.
    #[serde(flatten)]
    pub image: Image,
    /// The newest version of the runner, if GitHub has told.
    pub newest_runner_version: Option<String>,
    /// What is about to be too old, and what to do about it. Empty when all is well.
    pub warnings: Vec<String>,
}

/// The image that guests run, and what GitHub says of the runner's newest version.
#[derive(Debug, Default)]
pub struct ImageAge {
    image: Image,
    /// The newest version, and the earliest day on which it can have come out.
    newest: Option<(String, Option<i64>)>,
    /// GitHub has refused the image's runner for its version, and since then no job was taken.
    pub refused: bool,
}

impl ImageAge {
    /// A guest has said in its User-Agent what its image is made of.
    pub fn seen(&mut self, user_agent: &str) {
        if let Some(image) = Image::from_user_agent(user_agent) {
            self.refused &= image.runner_version == self.image.runner_version;
            self.image = image;
        }
    }

    /// GitHub has named the newest version of the runner, `today` (days since 1970).
    pub fn newest_runner_is(&mut self, version: String, today: i64) {
        if self.newest.as_ref().is_none_or(|(known, _)| *known != version) {
            // The first may have come out at any time before this start, but
            // the image was built with what was newest then.
            let since = self.newest.is_some().then_some(today);
            self.newest = Some((version, since));
        }
    }

    /// What there is to say `today` (days since 1970).
    pub fn report(&self, today: i64) -> Report {
        const FIX: &str = "build a new image (packer/rebuild.ps1)";
        let image = &self.image;
        let built = image.built.as_deref().and_then(parse_day);
        let mut warnings = Vec::new();
        if self.refused {
            let version = image.runner_version.as_deref().unwrap_or("");
            warnings.push(format!("GitHub no longer accepts the image's runner {version}: {FIX}"));
        } else if let (Some(version), Some((newest, since))) = (&image.runner_version, &self.newest)
            && let Some(since) = since.or(built)
            && is_older(version, newest)
        {
            match since + RUNNER_LIFE - today {
                ..=0 => warnings.push(format!(
                    "The image's runner {version} may be too old for GitHub to give it jobs (the newest is {newest}): {FIX}"
                )),
                left if left <= RUNNER_LIFE - RUNNER_GRACE => warnings.push(format!(
                    "GitHub may give the image's runner {version} no more jobs in {left} days (the newest is {newest}): {FIX}"
                )),
                _ => {}
            }
        }
        if let Some(day) = &image.windows_evaluation_ends
            && let Some(end) = parse_day(day)
        {
            match end - today {
                ..=0 => warnings.push(format!(
                    "The image's evaluation edition of Windows ended on {day}, and its VMs shut down every hour: {FIX}"
                )),
                left @ ..=30 => warnings.push(format!(
                    "The image's evaluation edition of Windows ends in {left} days, on {day}: {FIX}"
                )),
                _ => {}
            }
        }
        let newest_runner_version = self.newest.as_ref().map(|(version, _)| version.clone());
        Report { image: image.clone(), newest_runner_version, warnings }
    }
}

impl Image {
    /// Reads a guest's User-Agent. `None` if it is not a guest's.
    fn from_user_agent(agent: &str) -> Option<Image> {
        let mut parts = agent.split_ascii_whitespace();
        parts.next()?.strip_prefix("hyperv-runner-pool-guest/")?;
        let mut image = Image::default();
        for part in parts.take(8) {
            // It comes from a VM, and a job may have made it up.
            let plain =
                |s: &str| s.len() <= 32 && s.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b));
            match part.split_once('/') {
                Some(("runner", version)) if plain(version) => image.runner_version = Some(version.into()),
                Some(("image", day)) if parse_day(day).is_some() => image.built = Some(day.into()),
                Some(("windows-evaluation", day)) if parse_day(day).is_some() => {
                    image.windows_evaluation_ends = Some(day.into());
                }
                _ => {}
            }
        }
        Some(image)
    }
}

/// Whether a dotted version is older than another.
fn is_older(version: &str, than: &str) -> bool {
    let parts = |v: &str| -> Vec<u64> { v.split('.').map(|part| part.parse().unwrap_or(0)).collect() };
    parts(version) < parts(than)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str =
        "hyperv-runner-pool-guest/1 runner/2.330.0 image/2026-01-31 windows-evaluation/2026-07-30";

    #[test]
    fn a_guests_user_agent_tells_what_its_image_is_made_of() {
        let image = Image::from_user_agent(AGENT).unwrap();
        assert_eq!(image.runner_version.as_deref(), Some("2.330.0"));
        assert_eq!(image.built.as_deref(), Some("2026-01-31"));
        assert_eq!(image.windows_evaluation_ends.as_deref(), Some("2026-07-30"));
        assert_eq!(Image::from_user_agent("curl/8.0"), None);
        let odd =
            Image::from_user_agent("hyperv-runner-pool-guest/1 runner/<script> image/2026-13-01").unwrap();
        assert_eq!(odd, Image::default());
    }

    fn warnings(newest: &[(&str, i64)], today: i64) -> Vec<String> {
        let mut age = ImageAge::default();
        age.seen(AGENT);
        newest.iter().for_each(|(version, day)| age.newest_runner_is((*version).into(), *day));
        age.report(today).warnings
    }

    #[test]
    fn an_old_runner_is_warned_of_before_github_drops_it() {
        let seen = parse_day("2026-02-01").unwrap();
        let newer = [("2.330.0", seen - 9), ("2.331.0", seen)];
        assert!(warnings(&newer, seen).is_empty());
        assert!(warnings(&newer, seen + 10)[0].contains("in 20 days"));
        assert!(warnings(&newer, seen + 30)[0].contains("too old"));
        assert!(warnings(&newer[..1], seen + 30).is_empty());
        assert!(is_older("2.99.0", "2.330.0"));
    }

    #[test]
    fn a_version_that_was_newer_at_the_start_counts_from_the_day_the_image_was_built() {
        let built = parse_day("2026-01-31").unwrap();
        assert!(warnings(&[("2.331.0", built + 20)], built + 20)[0].contains("in 10 days"));
    }

    #[test]
    fn a_runner_that_github_refused_is_warned_of_until_an_image_has_another() {
        let mut age = ImageAge { refused: true, ..ImageAge::default() };
        age.seen(AGENT);
        assert!(!age.refused, "it was another image's");
        age.refused = true;
        age.seen(AGENT);
        assert!(age.report(0).warnings[0].contains("no longer accepts the image's runner 2.330.0"));
        age.seen("hyperv-runner-pool-guest/1 runner/2.331.0");
        assert!(age.report(0).warnings.is_empty());
    }

    #[test]
    fn the_end_of_an_evaluation_edition_is_warned_of_a_month_before() {
        let end = parse_day("2026-07-30").unwrap();
        assert!(warnings(&[], end - 31).is_empty());
        assert!(warnings(&[], end - 30)[0].contains("ends in 30 days, on 2026-07-30"));
        assert!(warnings(&[], end)[0].contains("ended on 2026-07-30"));
    }
}
