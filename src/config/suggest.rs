//! What a name that is not known was probably meant to be.

use super::settings::SETTINGS;

/// What other tools call some settings, where spelling alone would suggest
/// the wrong one.
const ALSO_CALLED: [(&str, &str); 7] = [
    ("GITHUB_TOKEN", "GITHUB_PAT"),
    ("GH_TOKEN", "GITHUB_PAT"),
    ("GITHUB_APP_CLIENT_ID", "GITHUB_APP_ID"),
    ("GITHUB_APP_PRIVATE_KEY", "GITHUB_APP_PRIVATE_KEY_PATH"),
    ("GITHUB_OWNER", "GITHUB_ORG"),
    ("GITHUB_URL", "GITHUB_API_URL"),
    ("VM_CPUS", "VM_CPU_COUNT"),
];

/// Variables that GitHub's runner sets and that differ from a setting by a
/// letter or two.
/// <https://docs.github.com/en/actions/reference/workflows-and-actions/variables>
const OF_GITHUB_ACTIONS: [&str; 2] = ["GITHUB_PATH", "GITHUB_REF"];

/// The setting that was probably meant by a name in `.env`, where every name
/// is meant for the pool.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    if let Some((_, meant)) = ALSO_CALLED.iter().find(|(other, _)| *other == upper) {
        return Some(meant);
    }
    let (distance, nearest) = closest(&upper, "")?;
    (distance <= nearest.len() / 3).then_some(nearest)
}

/// The setting that an environment variable misspells. Most variables have
/// nothing to do with the pool, so the name must agree with a setting up to
/// its first `_`, and in all but one or two of the letters after it.
pub(super) fn misspelled(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let first_word = upper.split_inclusive('_').next()?;
    let (distance, meant) = closest(&upper, first_word)?;
    let allowed = 2.min((meant.len() - first_word.len()) / 2);
    (distance <= allowed && !OF_GITHUB_ACTIONS.contains(&&upper[..])).then_some(meant)
}

/// The setting with the smallest edit distance among those with this first
/// word, and that distance.
fn closest(name: &str, first_word: &str) -> Option<(usize, &'static str)> {
    let settings = SETTINGS.iter().map(|setting| setting.name);
    closest_of(name, settings.filter(|name| name.starts_with(first_word)))
}

/// The known name with the smallest edit distance, and that distance.
pub(crate) fn closest_of<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<(usize, &'a str)> {
    known.map(|known| (edit_distance(name, known), known)).min()
}

/// How many characters must be inserted, removed or replaced (Levenshtein).
fn edit_distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_dotenv_is_led_to_the_nearest_setting() {
        for (unknown, meant) in [
            ("POOLSIZE", Some("POOL_SIZE")),
            ("VM_MEMORY", Some("VM_MEMORY_MB")),
            ("github_pat", Some("GITHUB_PAT")),
            ("GITHUB_TOKEN", Some("GITHUB_PAT")),
            ("HTTP_PROXY", None),
        ] {
            assert_eq!(nearest(unknown), meant, "{unknown}");
        }
    }

    #[test]
    fn a_misspelled_environment_variable_is_led_to_its_setting() {
        for (unknown, meant) in [
            ("POOL_SIZ", "POOL_SIZE"),
            ("POOL_SIEZ", "POOL_SIZE"),
            ("VM_MEMORY_M", "VM_MEMORY_MB"),
            ("RUNNER_LABEL", "RUNNER_LABELS"),
            ("GITHUB_REPOS", "GITHUB_REPO"),
            ("WEBHOOK_SECRT", "WEBHOOK_SECRET"),
            ("github_pat", "GITHUB_PAT"),
            ("USE_MOK", "USE_MOCK"),
        ] {
            assert_eq!(misspelled(unknown), Some(meant), "{unknown}");
        }
    }

    /// The variables of a job at GitHub, and of common shells and systems.
    #[test]
    fn other_programs_variables_are_left_alone() {
        let of_a_job = "ACTION ACTION_PATH ACTION_REPOSITORY ACTIONS ACTOR ACTOR_ID BASE_REF ENV EVENT_NAME EVENT_PATH \
            GRAPHQL_URL HEAD_REF JOB OUTPUT PATH REF REF_NAME REF_PROTECTED REF_TYPE REPOSITORY REPOSITORY_ID \
            REPOSITORY_OWNER REPOSITORY_OWNER_ID RETENTION_DAYS RUN_ATTEMPT RUN_ID RUN_NUMBER SERVER_URL SHA STATE \
            STEP_SUMMARY TOKEN TRIGGERING_ACTOR WORKFLOW WORKFLOW_REF WORKFLOW_SHA WORKSPACE"
            .split(' ')
            .map(|name| format!("GITHUB_{name}"));
        let others = "RUNNER_ARCH RUNNER_DEBUG RUNNER_ENVIRONMENT RUNNER_NAME RUNNER_OS RUNNER_TEMP RUNNER_TOOL_CACHE \
            RUNNER_TRACKING_ID RUNNER_WORKSPACE GH_TOKEN CI PATH PATHEXT HOME HOST HOSTNAME USER USERNAME USERPROFILE \
            POSIXLY_CORRECT PWD SHELL TERM TEMP TMP LANG LOGNAME LOG_FILE LOG_PATH LOGONSERVER COMPUTERNAME \
            HTTP_PROXY HTTPS_PROXY NO_PROXY RUST_LOG OS WINDIR PROMPT _ USE_CCACHE MAX_JOBS VM_NAME"
            .split_whitespace()
            .map(str::to_owned);
        for name in of_a_job.chain(others) {
            assert_eq!(misspelled(&name), None, "{name}");
        }
    }
}
