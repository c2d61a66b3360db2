//! The guest's side of the protocol: what the scripts in the image ask of the pool,
//! read off the scripts themselves, and that the tests' guest asks exactly the same.

use crate::support::fake_guest::{Answer, Guest, Image};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;

fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packer/guest").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines between `function name {` and the brace in the first column.
fn function(script: &str, name: &str) -> String {
    let head = format!("function {name} {{\n");
    let (_, rest) = script.split_once(&head).unwrap_or_else(|| panic!("no function {name}"));
    rest.split_once("\n}").unwrap().0.to_string()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text:?}"));
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?} in {rest:?}")).0
}

/// A request as far as the pool can tell one from another.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    authorization: String,
    user_agent: String,
    content_type: Option<String>,
    /// Keys of the JSON body and the kind of each value.
    body: BTreeMap<String, &'static str>,
}

/// Keys of a PowerShell hashtable on one line, `@{ a = $A; b = $B }`, with the JSON
/// kind that the type of each parameter becomes.
fn body_of(function: &str) -> BTreeMap<String, &'static str> {
    if !function.contains("-Body $body") {
        return BTreeMap::new();
    }
    let kind = |variable: &str| {
        let declared = function.lines().find(|l| l.trim_start().starts_with("param(")).unwrap();
        match declared.split(", ").find(|p| p.trim_end_matches(')').ends_with(variable)).unwrap() {
            p if p.starts_with("[string]") => "string",
            p if p.starts_with("[int]") => "number",
            p => panic!("{p}"),
        }
    };
    between(function, "$body = @{ ", " }")
        .split("; ")
        .map(|pair| pair.split_once(" = ").unwrap())
        .map(|(key, variable)| (key.to_string(), kind(variable)))
        .collect()
}

const SECRET: &str = "0123456789abcdef";

fn image() -> Image {
    Image {
        runner_version: "2.400.1".into(),
        built: "2026-11-05".into(),
        windows_evaluation_end: Some("2027-05-04".into()),
    }
}

/// What the script would send, for the VM runner-7.
fn scripted(name: &str) -> Request {
    let pool = script("pool.ps1");
    let function = function(&pool, name);
    let call = function.lines().find(|l| l.contains("Invoke-PoolRequest ")).unwrap();
    assert!(call.contains(" -Secret $Pool.Secret"), "{call}");
    let path = between(call, "-Uri \"$($Pool.Url)", "\"").replace("$($Pool.VmName)", "runner-7");
    assert!(!path.contains('$'), "{path}");
    let body = body_of(&function);

    let send = self::function(&pool, "Invoke-PoolRequest");
    assert!(send.contains("UserAgent       = Get-GuestUserAgent\n"));
    let content_type = between(&send, "$request.ContentType = '", "'").to_string();
    Request {
        method: between(call, "-Method '", "'").to_string(),
        path,
        authorization: between(&send, "Headers         = @{ Authorization = \"", "\" }")
            .replace("$Secret", SECRET),
        user_agent: scripted_user_agent(&pool, &image()),
        content_type: (!body.is_empty()).then_some(content_type),
        body,
    }
}

fn scripted_user_agent(pool: &str, image: &Image) -> String {
    let agent = function(pool, "Get-GuestUserAgent");
    let end = image.windows_evaluation_end.as_deref().unwrap_or_default();
    let fill = |text: &str| {
        text.replace("$($image.runner_version)", &image.runner_version)
            .replace("$($image.built)", &image.built)
            .replace("$($image.windows_evaluation_end)", end)
    };
    let mut made = fill(between(&agent, "$agent = \"", "\""));
    let further = agent.lines().find(|l| l.contains("$agent += ")).unwrap();
    assert!(further.trim_start().starts_with("if ($image.windows_evaluation_end) {"));
    if !end.is_empty() {
        made += &fill(between(further, "$agent += \"", "\""));
    }
    assert!(!made.contains('$'), "{made}");
    made
}

/// Answers one request with a status and a body, and returns what was asked.
fn answer_one(listener: &TcpListener, status: u16, body: &str) -> Request {
    let (stream, _) = listener.accept().unwrap();
    let request = read_request(&stream);
    write!(
        &stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    request
}

fn read_request(stream: &TcpStream) -> Request {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut first = line.split(' ');
    let (method, path) = (first.next().unwrap().to_string(), first.next().unwrap().to_string());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |n| n.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let mut kinds = BTreeMap::new();
    if !body.is_empty() {
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        for (key, value) in json.as_object().unwrap() {
            kinds.insert(
                key.clone(),
                if value.is_string() {
                    "string"
                } else if value.is_number() {
                    "number"
                } else {
                    "other"
                },
            );
        }
    }
    Request {
        method,
        path,
        authorization: headers.remove("authorization").unwrap_or_default(),
        user_agent: headers.remove("user-agent").unwrap_or_default(),
        content_type: headers.remove("content-type"),
        body: kinds,
    }
}

/// What the tests' guest sends, and what it makes of the answer.
fn played(status: u16, body: &str, ask: impl FnOnce(&Guest) -> Answer + Send) -> (Request, Answer) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    thread::scope(|scope| {
        let answer = scope.spawn(|| ask(&Guest::in_image(&url, "runner-7", SECRET, &image())));
        let request = answer_one(&listener, status, body);
        (request, answer.join().unwrap())
    })
}

#[test]
fn the_tests_guest_fetches_its_configuration_as_the_script_does() {
    let (request, answer) = played(200, "{\"token\":\"t\"}", Guest::fetch_config);
    assert_eq!(request, scripted("Get-RunnerConfig"));
    assert_eq!(answer, Answer { status: 200, body: "{\"token\":\"t\"}".into() });
}

#[test]
fn the_tests_guest_reports_the_start_of_a_job_as_the_script_does() {
    let (request, _) = played(200, "OK", |guest| guest.report_started("42", "build", "org/repo"));
    assert_eq!(request, scripted("Send-RunnerStarted"));
}

#[test]
fn the_tests_guest_reports_completion_as_the_script_does() {
    let (request, _) = played(200, "OK", |guest| guest.report_complete(0));
    assert_eq!(request, scripted("Send-RunnerComplete"));
}

/// The protocol itself, written out: the comparisons above would agree on anything.
#[test]
fn the_script_speaks_the_pools_protocol() {
    let request = |method: &str, path: &str, body: &[(&str, &'static str)]| Request {
        method: method.into(),
        path: path.into(),
        authorization: format!("Bearer {SECRET}"),
        user_agent:
            "hyperv-runner-pool-guest/1 runner/2.400.1 image/2026-11-05 windows-evaluation/2027-05-04".into(),
        content_type: (!body.is_empty()).then(|| "application/json".into()),
        body: body.iter().map(|(key, kind)| (key.to_string(), *kind)).collect(),
    };
    assert_eq!(scripted("Get-RunnerConfig"), request("GET", "/api/runner-config/runner-7", &[]));
    assert_eq!(
        scripted("Send-RunnerStarted"),
        request(
            "POST",
            "/api/runner-started/runner-7",
            &[("run_id", "string"), ("job", "string"), ("repository", "string")]
        )
    );
    assert_eq!(
        scripted("Send-RunnerComplete"),
        request("POST", "/api/runner-complete/runner-7", &[("exit_code", "number")])
    );
}

#[test]
fn only_an_evaluation_edition_says_when_windows_ends() {
    let image = Image { windows_evaluation_end: None, ..image() };
    let agent = scripted_user_agent(&script("pool.ps1"), &image);
    assert_eq!(agent, "hyperv-runner-pool-guest/1 runner/2.400.1 image/2026-11-05");
    assert_eq!(image.user_agent(), agent);
}

#[test]
fn to_the_tests_guest_a_refusal_is_its_status_and_silence_is_0() {
    for status in [401, 404, 409, 503] {
        assert_eq!(played(status, "why", Guest::fetch_config).1, Answer { status, body: String::new() });
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(Guest::new(&format!("http://{closed}"), "runner-7", SECRET).report_complete(0).status, 0);
}

/// pool.ps1 is all of the guest that speaks to the pool, so the comparisons miss
/// nothing; and all of its requests are among those compared.
#[test]
fn no_request_to_the_pool_is_made_anywhere_else() {
    for name in ["start-runner.ps1", "job-started.ps1", "supervise.ps1"] {
        for call in [
            "Invoke-WebRequest",
            "Invoke-RestMethod",
            "Invoke-PoolRequest",
            "WebClient",
            "HttpClient",
            "curl",
        ] {
            assert!(!script(name).contains(call), "{name}: {call}");
        }
    }
    let pool = script("pool.ps1");
    assert_eq!(pool.matches("Invoke-WebRequest").count(), 1);
    let senders: BTreeSet<&str> = pool
        .split("\nfunction ")
        .skip(1)
        .filter(|f| f.contains("return Invoke-PoolRequest "))
        .map(|f| f.split(' ').next().unwrap())
        .collect();
    assert_eq!(senders, BTreeSet::from(["Get-RunnerConfig", "Send-RunnerStarted", "Send-RunnerComplete"]));
}

#[test]
fn the_guest_learns_who_it_is_from_the_values_of_its_host() {
    let pool = script("pool.ps1");
    assert!(pool.contains("$script:ValuesKey = 'HKLM:\\SOFTWARE\\Microsoft\\Virtual Machine\\External'\n"));
    let identity = function(&pool, "Get-PoolIdentity");
    let read: Vec<&str> =
        identity.split("$key.GetValue('").skip(1).map(|rest| rest.split('\'').next().unwrap()).collect();
    assert_eq!(read, ["RunnerPoolUrl", "RunnerPoolVmName", "RunnerPoolVmSecret"]);
}

#[test]
fn the_guest_reads_from_the_image_what_the_build_has_recorded() {
    let record = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("packer/scripts/record-image.ps1"),
    )
    .unwrap();
    let recorded: BTreeSet<&str> = between(&record, "$image = [ordered]@{\n", "\n}")
        .lines()
        .map(|l| l.split('=').next().unwrap().trim())
        .collect();
    let agent = function(&script("pool.ps1"), "Get-GuestUserAgent");
    let read: BTreeSet<&str> =
        agent.split("$image.").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert_eq!(recorded, read);
    assert!(record.contains("'C:\\runner-pool-guest\\image.json'"));
}

#[test]
fn every_setting_that_the_guest_takes_is_one_that_the_pool_gives() {
    let given =
        ["token", "organization", "repository", "name", "labels", "registration", "url", "runner_group"];
    let start = script("start-runner.ps1");
    let taken: BTreeSet<String> = start
        .to_lowercase()
        .split("$config.")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect())
        .collect();
    assert!(taken.len() >= 6);
    for name in &taken {
        assert!(given.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn a_refused_configuration_is_final_and_anything_else_is_tried_again_for_a_while() {
    let wait = function(&script("start-runner.ps1"), "Wait-RunnerConfig");
    let refused = wait.lines().find(|l| l.contains("throw") && l.contains("refused")).unwrap();
    assert!(refused.contains("$answer.Status -in 401, 404, 409)"), "{refused}");
    assert!(wait.contains("if ($watch.Elapsed.TotalSeconds -ge $ConfigSeconds) { throw"));
    assert!(wait.contains("Start-Sleep -Seconds $delay"));
}

#[test]
fn every_wait_of_the_guest_is_bounded() {
    for name in ["start-runner.ps1", "supervise.ps1", "job-started.ps1", "pool.ps1"] {
        let script = script(name);
        for (at, _) in script.match_indices("while (") {
            // To the end of the function or block that the loop stands in.
            let text = &script[at..];
            let text = text.split_once("\n}").map_or(text, |(text, _)| text);
            assert!(
                text.contains("$watch.Elapsed.TotalSeconds -"),
                "{name}: {}",
                text.lines().next().unwrap()
            );
        }
        assert_eq!(script.matches("WaitForExit()").count(), 0, "{name}");
        assert_eq!(script.matches("Wait-Process").count(), 0, "{name}");
    }
    assert!(function(&script("pool.ps1"), "Invoke-PoolRequest").contains("TimeoutSec      = "));
    assert!(script("start-runner.ps1").contains("WaitForExit($Seconds * 1000)"));
}

/// WaitForExit takes milliseconds in 32 bits, and supervise.ps1 must not give up on
/// a guest that still waits.
#[test]
fn the_limits_of_the_guest_fit_each_other() {
    let seconds = |script: &str, name: &str| -> i64 {
        let line = script.lines().find(|l| l.starts_with(&format!("${name} = "))).unwrap();
        let product = line.split_once(" = ").unwrap().1.split('#').next().unwrap();
        product.split('*').map(|factor| factor.trim().parse::<i64>().unwrap()).product()
    };
    let start = script("start-runner.ps1");
    let limits = ["IdentitySeconds", "ConfigSeconds", "ConfigureSeconds", "RunnerSeconds", "CompleteSeconds"]
        .map(|n| seconds(&start, n));
    assert!(limits[3] * 1000 <= i64::from(i32::MAX), "WaitForExit");
    assert!(limits[3] > 5 * 24 * 3600, "a job on a self-hosted runner may take five days");
    assert!(seconds(&script("supervise.ps1"), "RunSeconds") > limits.iter().sum());
}

#[test]
fn a_secret_never_reaches_the_guests_log_or_a_command_line() {
    for name in ["start-runner.ps1", "job-started.ps1", "supervise.ps1"] {
        for line in script(name).lines().map(str::trim_start).filter(|l| !l.starts_with('#')) {
            let shows = ["Write-", "Add-Content", "throw", "Start-Process", "-ArgumentList", "& "]
                .iter()
                .any(|word| line.contains(word));
            let secret = ["Secret", ".token", "_TOKEN", "_JITCONFIG", ".Body", "$answer)"]
                .iter()
                .any(|word| line.contains(word));
            assert!(!(shows && secret), "{name}: {line}");
        }
    }
    let pool = script("pool.ps1");
    assert!(!pool.contains("Write-"), "pool.ps1 handles the secret and shows nothing");
    let start = script("start-runner.ps1");
    assert!(!start.contains("-ArgumentList"), "the runner's arguments travel in its environment");
    assert!(start.contains("$LogFile = 'C:\\actions-runner\\pool-guest.log'"));
}

#[test]
fn the_hook_ends_with_0_whatever_happens() {
    let hook = script("job-started.ps1");
    let code: Vec<&str> = hook.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    assert_eq!(&code[..3], ["Set-StrictMode -Version Latest", "$ErrorActionPreference = 'Stop'", "try {"]);
    assert_eq!(code.last(), Some(&"exit 0"));
    // Nothing stands outside try and catch but that exit.
    let outside: Vec<&&str> = code[2..].iter().filter(|l| !l.starts_with(' ')).collect();
    assert_eq!(outside, [&"try {", &"} catch {", &"}", &"exit 0"]);
}

#[test]
fn the_vm_is_powered_off_at_the_end_in_any_case() {
    let supervise = script("supervise.ps1");
    let (attempt, rest) = supervise.split_once("\n} catch {\n").expect("what may fail stands in a try");
    assert!(attempt.contains("\ntry {\n    Start-ScheduledTask -TaskName $GuestTask\n"));
    assert!(rest.contains("\n    & shutdown.exe /s /f /t 0\n"), "behind the catch, not in the try");
    assert!(!attempt.contains("exit") && !attempt.contains("return\n"));
    let install = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("packer/scripts/install-guest.ps1"),
    )
    .unwrap();
    let task = between(&supervise, "$GuestTask = '", "'");
    assert!(install.contains(&format!("Register-ScheduledTask -TaskName '{task}' ")));
    assert!(install.contains("New-ScheduledTaskTrigger -AtStartup"));
    assert!(
        install.contains("-ExecutionTimeLimit ([TimeSpan]::Zero)"),
        "tasks are ended after three days otherwise"
    );
}

/// Whatever goes wrong before, the pool is told, unless it could not be known.
#[test]
fn completion_is_reported_after_any_failure() {
    let start = script("start-runner.ps1");
    let (_, main) = start.split_once("\n$pool = $null\n").unwrap();
    assert!(main.starts_with("$exitCode = 1\ntry {\n"), "a failure is not a success");
    let (first, report) = main.split_once("\n} catch {\n").unwrap();
    assert!(first.contains("Invoke-Runner -Config $config"));
    assert!(report.contains(
        "try {\n    if ($null -ne $pool) { Send-Completion -Pool $pool -ExitCode $exitCode }\n} catch {"
    ));
}

/// The harness makes the script's requests (see above), so what a running pool answers to it, it answers to the script.
#[test]
fn a_running_pool_takes_the_guests_requests_from_boot_to_replacement() {
    use hyperv_runner_pool::pool::slot::{Phase, Stop};
    use hyperv_runner_pool::sim::hypervisor::Faults;

    let world = crate::support::mock_pool::world();
    world.hypervisor.set_faults(Faults { dead_guests: u32::MAX, ..Faults::default() });
    let pool = world.start(crate::support::mock_pool::settings(1, 1));
    pool.wait_for(Phase::Booting, 1);
    let first = pool.incarnation(1);
    let today = hyperv_runner_pool::date::timestamp(std::time::SystemTime::now())[..10].to_string();
    let image = Image {
        runner_version: "2.338.0".into(),
        built: "2026-01-31".into(),
        windows_evaluation_end: Some(today.clone()),
    };
    let guest = Guest::in_image(&pool.url, "runner-1", &pool.vm_secret(1), &image);

    let config = guest.fetch_config();
    assert_eq!(config.status, 200);
    let config: serde_json::Value = serde_json::from_str(&config.body).unwrap();
    assert_eq!(config["registration"], "jit");
    assert!(config["token"].as_str().unwrap().starts_with("simulated-jit-"));
    pool.wait_for(Phase::Ready, 1);

    assert_eq!(guest.report_started("1234", "build", "octo/hello").status, 200);
    pool.wait_for(Phase::Running, 1);
    assert_eq!(guest.fetch_config().status, 409);

    assert_eq!(guest.report_complete(0).status, 200);
    crate::support::wait_until("the VM is replaced", || {
        pool.slot(1).phase == Phase::Booting && pool.incarnation(1) != first
    });
    // A report that is sent again, since its answer was lost, must find an end (see `Send-Completion`).
    assert!([401, 404].contains(&guest.report_complete(0).status));

    let status = pool.get("/api/status", &[]).json();
    assert_eq!(status["image"]["runner_version"], "2.338.0");
    assert_eq!(status["image"]["built"], "2026-01-31");
    let warnings = status["image"]["warnings"].to_string();
    assert!(warnings.contains(&format!("ended on {today}")), "{warnings}");
    pool.stop(Stop::Destroy);
}
