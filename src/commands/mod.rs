//! The command line. Each command is one row of [`COMMANDS`]: its name, what
//! may follow it, what people read about it, and the code. Reading the command
//! line and `--help` both come from those rows.
//!
//! Exit codes: 0 when it is done, 1 when it could not be done, 2 for wrong
//! arguments or settings.

mod check;
mod cleanup;
mod client;
mod operate;
mod run;
mod status;

use crate::app::{self, Failure};
use crate::config::{self, Loaded, Source, closest_of, wrap};
use crate::service::{self, Command as OfService};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const PROGRAM: &str = "hyperv-runner-pool";
const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// What came of a command that could be performed.
type Done = Result<ExitCode, Failure>;

/// One command.
pub struct Command {
    /// The words that call it. None for what the program does without any.
    pub name: &'static str,
    /// What may follow.
    arguments: &'static [Argument],
    /// What it does. Empty for one that people do not call.
    about: &'static str,
    perform: fn(&Given) -> Done,
}

/// Something that may follow a command's name.
struct Argument {
    /// As it is typed: `--now`, `--folder PATH`, or `VM` for a word of its own.
    syntax: &'static str,
    about: &'static str,
}

const JSON: Argument = Argument { syntax: "--json", about: "write JSON" };
const NOW: Argument =
    Argument { syntax: "--now", about: "end at once, and leave every VM as it is to the next start" };
const VM: Argument = Argument { syntax: "VM", about: "this VM only, and at once, such as runner-1" };
const FOLDER: Argument = Argument {
    syntax: "--folder PATH",
    about: "the folder of .env (default: this folder, or the program's)",
};
const WATCH: Argument = Argument { syntax: "--watch", about: "again every two seconds, until Ctrl+C" };
const WAIT: Argument = Argument { syntax: "--wait", about: "return when the last job has ended" };
const YES: Argument = Argument { syntax: "--yes", about: "do not ask" };

/// Every command, in the order of `--help`.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "",
        arguments: &[],
        about: "run the pool until Ctrl+C",
        perform: |_| with_config(run::run),
    },
    Command {
        name: "check",
        arguments: &[JSON],
        about: "check the settings and this host; change nothing",
        perform: |given| with_config(|loaded, _| check::check(loaded, given.has(&JSON))),
    },
    Command {
        name: "status",
        arguments: &[WATCH, JSON],
        about: "show the running pool: each slot, its VM, its job, and what fails",
        perform: status::perform,
    },
    Command {
        name: "stop",
        arguments: &[NOW],
        about: "stop the running pool in order, as Ctrl+C does, and wait until it has ended; the service too",
        perform: |given| operate::stop(given.has(&NOW)),
    },
    Command {
        name: "drain",
        arguments: &[WAIT],
        about: "take no more jobs: idle VMs retire, none is made, jobs go on; until `resume` or a restart",
        perform: |given| operate::drain(given.has(&WAIT)),
    },
    Command { name: "resume", arguments: &[], about: "end a drain", perform: |_| operate::command("resume") },
    Command {
        name: "recycle",
        arguments: &[VM],
        about: "replace every idle VM, each when the one before is replaced; slots that fail try again now",
        perform: |given| operate::recycle(given.value(&VM)),
    },
    Command {
        name: "cleanup",
        arguments: &[YES],
        about: "while no pool runs: list its VMs, disks and registrations, ask, and remove them all",
        perform: |given| with_config(|loaded, _| cleanup::cleanup(loaded, given.has(&YES))),
    },
    Command {
        name: "service install",
        arguments: &[FOLDER],
        about: "install the pool as a Windows service, or change the folder or program of the one installed",
        perform: |given| {
            let folder = given.value(&FOLDER).map(PathBuf::from);
            of_service(OfService::Install { folder })
        },
    },
    Command {
        name: "service start",
        arguments: &[],
        about: "start the service; with Windows it starts by itself",
        perform: |_| of_service(OfService::Start),
    },
    Command {
        name: "service stop",
        arguments: &[NOW],
        about: "stop the service in order",
        perform: |given| of_service(OfService::Stop { now: given.has(&NOW) }),
    },
    Command {
        name: "service status",
        arguments: &[],
        about: "tell whether the service runs; the only one of these that needs no elevated prompt",
        perform: |_| of_service(OfService::Status),
    },
    Command {
        name: "service uninstall",
        arguments: &[],
        about: "stop the service in order and remove it",
        perform: |_| of_service(OfService::Uninstall),
    },
    Command { name: "service run", arguments: &[], about: "", perform: |_| of_service(OfService::Run) },
    Command {
        name: "--help",
        arguments: &[],
        about: "print this text; after a command, print what may follow it",
        perform: |_| Ok(print(&help())),
    },
    Command {
        name: "--version",
        arguments: &[],
        about: "print the version",
        perform: |_| Ok(print(concat!("hyperv-runner-pool ", env!("CARGO_PKG_VERSION"), "\n"))),
    },
];

/// Does what the command line asks for.
pub fn perform(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match read(&words) {
        Ok(Call::Perform(command, given)) => {
            (command.perform)(&given).unwrap_or_else(|failure| failed(&failure))
        }
        Ok(Call::Explain(text)) => print(&text),
        Err(why) => {
            eprintln!("{PROGRAM}: {why} (see --help)");
            ExitCode::from(WRONG_USAGE)
        }
    }
}

/// What was given after a command's name.
#[derive(Debug, Default)]
struct Given(Vec<(&'static str, String)>);

impl Given {
    fn value(&self, argument: &Argument) -> Option<&str> {
        self.0.iter().find(|(given, _)| *given == argument.syntax).map(|(_, value)| value.as_str())
    }

    fn has(&self, argument: &Argument) -> bool {
        self.value(argument).is_some()
    }
}

enum Call {
    Perform(&'static Command, Given),
    Explain(String),
}

/// Reads the command line.
fn read(words: &[&str]) -> Result<Call, String> {
    let words = match words {
        ["help" | "-h", rest @ ..] => [&["--help"], rest].concat(),
        ["-V", rest @ ..] => [&["--version"], rest].concat(),
        _ => words.to_vec(),
    };
    let is_called = |command: &&Command| {
        let name: Vec<&str> = command.name.split_whitespace().collect();
        words.starts_with(&name)
    };
    let Some(command) = COMMANDS.iter().filter(is_called).max_by_key(|command| command.name.len()) else {
        return Err("no command".into());
    };
    let rest = &words[command.name.split_whitespace().count()..];
    if command.name.is_empty()
        && let Some(&first) = rest.first()
    {
        return of_no_command(first, &rest[1..]);
    }
    let mut given = Given::default();
    let mut rest = rest.iter();
    while let Some(&word) = rest.next() {
        if matches!(word, "--help" | "-h") {
            return Ok(Call::Explain(explain(command)));
        }
        let argument = command.arguments.iter().find(|argument| {
            let is_option = argument.syntax.starts_with('-');
            is_option && argument.syntax.split(' ').next() == Some(word)
                || !is_option && !word.starts_with('-') && !given.has(argument)
        });
        let Some(argument) = argument else {
            let meant = near(word, command.arguments.iter().filter_map(|a| a.syntax.split(' ').next()));
            return Err(format!("{word:?} is not an argument of `{}`{meant}", command.name));
        };
        let value = match argument.syntax.split_once(' ') {
            Some((option, what)) => {
                *rest.next().ok_or_else(|| format!("{option} needs a {what} after it"))?
            }
            None => word,
        };
        given.0.push((argument.syntax, value.to_owned()));
    }
    Ok(Call::Perform(command, given))
}

/// The first word is no command by itself, but may be the first of some.
fn of_no_command(first: &str, rest: &[&str]) -> Result<Call, String> {
    let group = format!("{first} ");
    let members: Vec<&Command> =
        COMMANDS.iter().filter(|c| c.name.starts_with(&group) && !c.about.is_empty()).collect();
    let names = || members.iter().map(|command| &command.name[group.len()..]);
    match rest {
        _ if members.is_empty() => {
            let known = COMMANDS.iter().filter(|command| !command.about.is_empty());
            let meant = near(first, known.filter_map(|command| command.name.split(' ').next()));
            Err(format!("{first:?} is not a command{meant}; settings come from the environment and .env"))
        }
        ["--help" | "-h", ..] => {
            Ok(Call::Explain(members.into_iter().map(explain).collect::<Vec<_>>().join("\n")))
        }
        [] => Err(format!("`{first}` needs one of {} after it", names().collect::<Vec<_>>().join(", "))),
        [unknown, ..] => Err(format!("{unknown:?} is not a command of `{first}`{}", near(unknown, names()))),
    }
}

/// The question whether the name that differs by a letter or two was meant.
fn near<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let close = closest_of(word, known.filter(|known| !known.is_empty()));
    let close = close.filter(|(distance, _)| *distance <= 2 && *distance < word.len());
    close.map_or_else(String::new, |(_, meant)| format!("; did you mean {meant}?"))
}

/// The text for `--help`.
pub fn help() -> String {
    let mut help = format!(
        "hyperv-runner-pool {}
Keeps a pool of Hyper-V VMs ready as ephemeral GitHub Actions runners. Each VM runs one job, is
destroyed, and is replaced by a fresh one.

USAGE
  hyperv-runner-pool [COMMAND]

COMMANDS
",
        env!("CARGO_PKG_VERSION")
    );
    for command in COMMANDS.iter().filter(|command| !command.about.is_empty()) {
        let called = if command.name.is_empty() { "(none)".into() } else { synopsis(command) };
        columns(&mut help, &called, command.about, 34);
    }
    help.push_str(
        "
To try it with simulated VMs, without any setup:
  USE_MOCK=true hyperv-runner-pool                        (sh)
  $env:USE_MOCK='true'; hyperv-runner-pool                (PowerShell)

EXIT CODES
  0  it was done: the pool was stopped, the check found no fault, the service is as wanted
  1  it could not be done: the pool could not run, no pool runs, the check found faults
  2  an argument or a setting is wrong; every fault is listed

Settings come from environment variables and from the file .env in the pool's folder. That is the
folder of the installed service; without one, the working directory if it has a .env, else the
program's folder. Relative paths start there. Environment variables override .env. An empty value
counts as not set.
",
    );
    help.push_str(&config::help());
    help
}

/// The text for `COMMAND --help`.
fn explain(command: &Command) -> String {
    let mut text = String::new();
    columns(&mut text, "", command.about, 2);
    text = format!("{PROGRAM} {}\n{text}", synopsis(command));
    for argument in command.arguments {
        columns(&mut text, &format!("  {}", argument.syntax), argument.about, 22);
    }
    text
}

/// How a command is typed, without the program's name.
fn synopsis(command: &Command) -> String {
    let arguments = command.arguments.iter().map(|argument| format!(" [{}]", argument.syntax));
    format!("{}{}", command.name, arguments.collect::<String>())
}

/// Two columns, of which the second begins at `width`.
fn columns(text: &mut String, left: &str, right: &str, width: usize) {
    let left = if left.is_empty() { String::new() } else { format!("  {left}") };
    let indent = " ".repeat(width);
    let mut before = if left.len() < width { format!("{left:width$}") } else { format!("{left}\n{indent}") };
    for line in wrap(right, 98 - width) {
        text.push_str(&format!("{before}{line}\n"));
        before.clone_from(&indent);
    }
}

fn of_service(command: OfService) -> Done {
    command.perform().map(|text| print(&text))
}

/// Reads the settings of the pool that this command is about.
fn with_config(go: impl FnOnce(Loaded, Source) -> Done) -> Done {
    let source = source()?;
    let mut loaded = app::load(&source)?;
    if let Some(folder) = service::installed_folder()
        && std::env::current_dir().ok().as_ref() != Some(&folder)
    {
        let folder = folder.display();
        loaded.warnings.push(format!("The settings are those of the installed service, in {folder}."));
    }
    go(loaded, source)
}

fn source() -> Result<Source, Failure> {
    Ok(Source::new(std::env::vars_os(), service::folder().map_err(Failure::Failed)?))
}

fn print(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has read enough.
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}

fn failed(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Refused(why) => {
            eprintln!("{why}");
            ExitCode::from(WRONG_USAGE)
        }
        Failure::Failed(why) => {
            // What was logged on the way here comes first.
            log::logger().flush();
            eprintln!("{PROGRAM}: {why}");
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(line: &str) -> (&'static str, Vec<(&'static str, String)>) {
        match read(&line.split_whitespace().collect::<Vec<_>>()).unwrap() {
            Call::Perform(command, given) => (command.name, given.0),
            Call::Explain(text) => panic!("{text}"),
        }
    }

    fn wrong(line: &str) -> String {
        match read(&line.split_whitespace().collect::<Vec<_>>()) {
            Err(why) => why,
            Ok(_) => panic!("{line} is a command"),
        }
    }

    fn explained(line: &str) -> String {
        match read(&line.split_whitespace().collect::<Vec<_>>()).unwrap() {
            Call::Explain(text) => text,
            Call::Perform(command, _) => panic!("{} is called", command.name),
        }
    }

    #[test]
    fn every_command_is_read_by_its_name() {
        for command in COMMANDS {
            assert_eq!(called(command.name), (command.name, Vec::new()));
        }
        for (short, name) in [("help", "--help"), ("-h", "--help"), ("-V", "--version")] {
            assert_eq!(called(short).0, name);
        }
    }

    #[test]
    fn options_and_values_are_read_in_any_order() {
        let given = |words: &[&'static str]| words.iter().map(|&w| (w, w.to_owned())).collect::<Vec<_>>();
        assert_eq!(called("stop --now"), ("stop", given(&["--now"])));
        assert_eq!(called("status --json --watch"), ("status", given(&["--json", "--watch"])));
        let folder = vec![("--folder PATH", r"C:\pool".to_owned())];
        assert_eq!(called(r"service install --folder C:\pool"), ("service install", folder));
    }

    #[test]
    fn a_wrong_command_line_is_named() {
        assert_eq!(
            wrong("frobnicate"),
            "\"frobnicate\" is not a command; settings come from the environment and .env"
        );
        assert_eq!(
            wrong("service"),
            "`service` needs one of install, start, stop, status, uninstall after it"
        );
        assert_eq!(
            wrong("service restart"),
            "\"restart\" is not a command of `service`; did you mean start?"
        );
        assert_eq!(
            wrong("service stop now"),
            "\"now\" is not an argument of `service stop`; did you mean --now?"
        );
        assert_eq!(wrong("stop --now x"), "\"x\" is not an argument of `stop`");
        assert_eq!(wrong("check --foo"), "\"--foo\" is not an argument of `check`");
        assert_eq!(wrong("service install --folder"), "--folder needs a PATH after it");
        assert_eq!(wrong("service install --folder a b"), "\"b\" is not an argument of `service install`");
    }

    #[test]
    fn a_misspelled_word_is_led_to_the_nearest() {
        for (line, meant) in [
            ("statsu", "status"),
            ("stpo", "stop"),
            ("chekc", "check"),
            ("servcie install", "service"),
            ("--hlep", "--help"),
            ("service instal", "install"),
            ("stop --nwo", "--now"),
            ("status --wacth", "--watch"),
        ] {
            assert!(wrong(line).contains(&format!("did you mean {meant}?")), "{}", wrong(line));
        }
    }

    #[test]
    fn each_command_explains_itself_and_what_may_follow_it() {
        for command in COMMANDS.iter().filter(|c| !c.about.is_empty() && !c.name.starts_with('-')) {
            if command.name.is_empty() {
                continue;
            }
            let text = explained(&format!("{} --help", command.name));
            assert!(text.starts_with(&format!("hyperv-runner-pool {}", command.name)), "{text}");
            for Argument { syntax, .. } in command.arguments {
                assert!(text.contains(&format!("\n    {syntax}")), "{text}");
            }
            for line in text.lines() {
                assert!(line.len() <= 100 && line.is_ascii() && line.trim_end() == line, "{line:?}");
            }
        }
        let group = explained("service --help");
        assert!(group.contains("service install [--folder PATH]") && group.contains("service uninstall"));
        assert!(!group.contains("hyperv-runner-pool service run"), "only Windows calls that");
    }
}
