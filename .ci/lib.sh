# Shared by the scripts here.

fail() { echo "FAILED: $*" >&2; exit 1; }

ci="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

# What is worth keeping between runs.
cache="${CI_CACHE:-$HOME/.cache/hyperv-runner-pool-ci}"

# The tools that no machine package installs. Each has a folder here.
tools="${TOOLS:-$ci/../../shared}"
[ -d "$tools" ] || fail "no tools at $tools: set TOOLS to the folder that holds pwsh, packer, runner and wine"

# until_ok COMMAND...: tries a command until it succeeds. It gives up after a time that is long
# even for a machine with much else to do.
until_ok() {
  local deadline=$((SECONDS + 240))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.05
  done
}

# need_tool PROGRAM CRATE ARGUMENT...: PROGRAM is on the PATH. If it is not there, this builds it of crates.io's
# CRATE, which takes minutes, once. The network may fail a few times.
need_tool() {
  local program="$1" try
  shift
  export PATH="$cache/tools/bin:$PATH"
  command -v "$program" >/dev/null && return
  for try in 1 2 3; do
    cargo install "$@" --locked --debug --quiet --root "$cache/tools" && return
    sleep $((try * 10))
  done
  fail "$1 cannot be installed from crates.io"
}

# clear_away FOLDER: removes it, and what still runs of all that was started by a path in it. What is
# killed may write for a moment yet.
clear_away() { until_ok kill_and_remove "$1" || fail "$1 cannot be removed"; }
kill_and_remove() { pkill -9 -f "$1/" || true; chmod -R u+w "$1"; rm -rf "$1"; }

# hmac KEY TEXT: HMAC-SHA256 in hex.
hmac() { printf '%s' "$2" | openssl dgst -sha256 -hmac "$1" | sed 's/^.* //'; }

# sign SECRET BODY: the value of X-Hub-Signature-256.
sign() { printf 'sha256=%s' "$(hmac "$1" "$2")"; }

# webhook URL SECRET BODY: delivers a workflow_job event and prints the answer.
webhook() {
  curl -sS --max-time 60 -X POST "$1/webhook" -H 'Content-Type: application/json' \
    -H 'X-GitHub-Event: workflow_job' -H "X-Hub-Signature-256: $(sign "$2" "$3")" --data-binary "$3"
}

# Not by pipes: grep ends at the first match, and curl would fail to write the rest.
health_has() { grep -q "$2" <<<"$(curl -sS --max-time 60 "$1/health")"; }

metric_is() { grep -qx "hyperv_runner_pool_$2" <<<"$(curl -sS --max-time 60 "$1/metrics")"; }

# A port that nobody has. It is below the range from which systems give ports to connections and
# to whoever asks for any, so that none of those takes it before its user does.
free_port() {
  python3 -c '
import random, socket
while True:
    with socket.socket() as s:
        port = random.randrange(10000, 32000)
        try: s.bind(("", port))
        except OSError: continue
        print(port)
        break'
}

# start_github PAT...: tests/fake-github.mjs at $github; it is the process $github_process.
start_github() {
  local said; said="$(mktemp)"
  node "$ci/../tests/fake-github.mjs" "$@" >"$said" &
  github_process=$!
  until_ok test -s "$said" || fail "the fake GitHub does not start"
  github="http://127.0.0.1:$(cat "$said")"
  rm "$said"
}

# ask URL EXPRESSION: an expression over the JSON there, which is `it`.
ask() { curl -sSf --max-time 60 "$1" | node -e 'const it = JSON.parse(require("fs").readFileSync(0)); console.log(eval(process.argv[1]) ?? "")' "$2"; }
is() { [ "$(ask "$1" "$2")" = "$3" ]; }

# wait_for FAULT COMMAND...: until it succeeds. These need a function show_log and the path of the log, $log.
wait_for() { until_ok "${@:2}" || { show_log; fail "$1"; }; }
logged() { wait_for "the log has no line with: $1" grep -qF "$1" "$log"; }

# new_job SCRIPT: queues a job at $github, prints its id.
new_job() { curl -sSf -X POST "$github/-/jobs" -d "$(node -e 'console.log(JSON.stringify({ script: process.argv[1] }))' "$1")" | grep -o '[0-9]*'; }
job_is() { wait_for "job $1 is not $2 $3" is "$github/-/jobs" "it.find((job) => job.id === $1).$2" "$3"; }

# calls_of_host FOLDER: how often each function of the simulated host was called.
calls_of_host() { echo "calls of Hyper-V: $(sort "$1/calls.log" | uniq -c | sort -rn | awk '{printf "%s %s, ", $2, $1}')"; }

# use_windows FOLDER: from here on $wine is this Windows, which is made if it is not there.
# Wine's own services keep the streams of what started them, so none may be a pipe of ours.
use_windows() {
  export WINEPREFIX="$1" WINEDEBUG=-all,err+eventlog,warn+eventlog WINEDLLOVERRIDES='mshtml=' DISPLAY=
  wine=/usr/lib/wine/wine64 wineserver=/usr/lib/wine/wineserver64
  if [ ! -d "$WINEPREFIX/drive_c" ]; then
    WINEDLLOVERRIDES='mscoree,mshtml=' timeout 240 $wine wineboot -i >/dev/null 2>&1 </dev/null || fail "Wine makes no Windows here"
    timeout 240 $wineserver -w || fail "Wine does not come to rest"
  fi
  # From which Rust's standard library takes its randomness, and which Wine 8 lacks.
  x86_64-w64-mingw32-gcc -shared -O2 -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" "$ci/bcryptprimitives.c" -ladvapi32
}

# windows_path PATH: how Windows sees it.
windows_path() { echo "Z:${1//\//\\}"; }

# start_services POOL: the service manager runs, for `service`; POOL is the pool's folder.
# Wine would end its services with its last program. File descriptor 9 keeps one open.
start_services() {
  pool_folder="$1"
  mkfifo "$pool_folder/open"
  $wine cmd /q <"$pool_folder/open" >"$pool_folder/cmd.log" 2>&1 &
  exec 9>"$pool_folder/open"
  # With this, services begin, whose messages then go to cmd.log.
  until_ok test -s "$pool_folder/cmd.log" || fail "Wine has no command line"
  until_ok manager_answers || { cat "$pool_folder/out" "$pool_folder/err"; fail "Wine has no service manager"; }
}
run_pool() { timeout "$1" $wine "$pool_folder/hyperv-runner-pool.exe" "${@:2}" >"$pool_folder/out" 2>"$pool_folder/err" </dev/null; }
manager_answers() { ! run_pool 240 service status && grep -q 'there is no service' "$pool_folder/err"; }

# pool_does CODE WORD...: the command WORD...; it must end with this code. What it prints is in $said.
pool_does() {
  local wanted=$1 code=0; shift
  run_pool 240 "$@" || code=$?
  said="$(cat "$pool_folder/out" "$pool_folder/err" | tr -d '\0' | sed '/:eventlog:/d; /^wine: /d; s/\r$//')"
  echo "$*: exit code $code: $said"
  [ "$code" = "$wanted" ] || { cat "$pool_folder/logs/"* "$pool_folder/cmd.log" || true; fail "$*: exit code $code instead of $wanted"; }
}
service() { local wanted=$1; shift; pool_does "$wanted" service "$@"; }
says() { [[ "$said" == *"$1"* ]] || fail "it does not say: $1"; }

# What .NET's runtime, or Wine on its behalf, says when it crashes.
dotnet_crash='^Fatal error\.|0x80131506|[eE]xit code: 0xc000|Unhandled exception: page fault|Process terminated\.'
