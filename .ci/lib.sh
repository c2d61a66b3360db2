# Shared by the scripts here.

fail() { echo "FAILED: $*" >&2; exit 1; }

ci="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

# The tools that no machine package installs. Each has a folder here, with a script "install".
tools="${TOOLS:-$ci/../../shared}"
[ -d "$tools" ] || fail "no tools at $tools: set TOOLS to the folder that holds pwsh, packer and runner"

# until SECONDS COMMAND...: tries a command until it succeeds.
until_ok() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.05
  done
}

# hmac KEY TEXT: HMAC-SHA256 in hex.
hmac() { printf '%s' "$2" | openssl dgst -sha256 -hmac "$1" | sed 's/^.* //'; }

# sign SECRET BODY: the value of X-Hub-Signature-256.
sign() { printf 'sha256=%s' "$(hmac "$1" "$2")"; }

# webhook URL SECRET BODY: delivers a workflow_job event and prints the answer.
webhook() {
  curl -sS --max-time 10 -X POST "$1/webhook" -H 'Content-Type: application/json' \
    -H 'X-GitHub-Event: workflow_job' -H "X-Hub-Signature-256: $(sign "$2" "$3")" --data-binary "$3"
}

health_has() { curl -sS --max-time 5 "$1/health" | grep -q "$2"; }

metric_is() { curl -sS --max-time 5 "$1/metrics" | grep -qx "hyperv_runner_pool_$2"; }

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# add_randomness FOLDER: the DLL from which Rust's standard library takes its randomness, and which Wine 8 lacks.
add_randomness() { x86_64-w64-mingw32-gcc -shared -O2 -o "$1/bcryptprimitives.dll" "$ci/bcryptprimitives.c" -ladvapi32; }
