#!/usr/bin/env bash
# Signed webhooks a second: this program beside a Go net/http server that does
# the same. Needs go, wrk and openssl (apt: golang-go wrk openssl), and the
# release binary (or its path as the argument). ROUNDS and SECONDS_EACH say how
# long it takes.
set -euo pipefail
cd "$(dirname "$0")"
binary="$(realpath "${1:-../../target/release/hyperv-runner-pool}")"
rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-5}
folder="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
go build -o "$folder/peer" .

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
ours=$(free_port) peers=$(free_port)
# One VM with a job that does not end: the pool has nothing else to do. The peer logs nothing, so neither do we.
(cd "$folder" && USE_MOCK=true PORT=$ours BIND=127.0.0.1 POOL_SIZE=1 MOCK_BOOT_SECONDS=0 MOCK_JOB_SECONDS=86400 \
  LOG_LEVEL=warn exec "$binary") &
WEBHOOK_SECRET=mock-secret PORT=$peers "$folder/peer" &

export BODY='{"action":"queued","workflow_job":{"id":2832853555,"run_id":940463255,"labels":["self-hosted","windows"],"runner_id":null,"runner_name":null},"repository":{"name":"hello-world"}}'
SIGNATURE="sha256=$(printf '%s' "$BODY" | openssl dgst -sha256 -hmac mock-secret | sed 's/^.* //')"
export SIGNATURE
for port in $ours $peers; do
  for _ in $(seq 100); do
    curl -sf -o "$folder/answer" "http://127.0.0.1:$port/webhook" -d "$BODY" -H "X-Hub-Signature-256: $SIGNATURE" && break
    sleep 0.05
  done
  [ "$(cat "$folder/answer")" = OK ] || { echo "port $port does not answer"; exit 1; }
done

# requests per second against a port; anything but 200 is a failure.
measure() {
  wrk -t1 -c32 -d"$1" -s deliveries.lua "http://127.0.0.1:$2" >"$folder/wrk" 2>&1
  if grep -Eq 'Non-2xx|Socket errors' "$folder/wrk"; then cat "$folder/wrk"; exit 1; fi
  awk '/^Requests\/sec/ {print int($2)}' "$folder/wrk"
}

measure 1s "$ours" >/dev/null
measure 1s "$peers" >/dev/null
printf '%-8s %12s %12s %7s\n' round "ours req/s" "Go req/s" ratio
for round in $(seq "$rounds"); do
  a=$(measure "${seconds}s" "$ours")
  b=$(measure "${seconds}s" "$peers")
  echo "$a $b" >>"$folder/results"
  printf '%-8s %12d %12d %7s\n' "$round" "$a" "$b" "$(awk "BEGIN {printf \"%.2f\", $a / $b}")"
done
awk '{a += $1; b += $2} END {printf "%-8s %12d %12d %7.2f\n", "mean", a / NR, b / NR, a / b}' "$folder/results"
echo "($(go version | cut -d' ' -f3), $(nproc) cores shared with wrk -t1 -c32, $(date -u +%F))"
