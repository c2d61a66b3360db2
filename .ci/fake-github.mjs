// As much of GitHub's REST API for self-hosted runners as the pool uses, with
// runners in memory. Prints its port. For whoever plays GitHub's other side:
// POST /-/runners/NAME?online=true&busy=false changes a runner, DELETE
// /-/runners/NAME forgets it, GET /-/runners lists all.
import { createServer } from "node:http";

const [token] = process.argv.slice(2);
const scope = "/orgs/acme/actions";
let runners = [];
let lastId = 0;

const shown = (runner) => ({
  ...runner,
  os: "Windows",
  status: runner.online ? "online" : "offline",
  labels: runner.labels.map((name, id) => ({ id, name, type: "custom" })),
});

function control(method, name, query) {
  if (!name) return [200, runners.map((runner) => runner.name)];
  const runner = runners.find((runner) => runner.name === name);
  if (!runner) return [404, {}];
  if (method === "DELETE") runners = runners.filter((other) => other !== runner);
  for (const key of ["online", "busy"]) {
    if (query.has(key)) runner[key] = query.get(key) === "true";
  }
  return [200, shown(runner)];
}

function answer(method, path, query, body) {
  if (method === "GET" && path === "/runners") {
    const named = runners.filter((runner) => !query.has("name") || runner.name === query.get("name"));
    return [200, { total_count: named.length, runners: named.map(shown) }];
  }
  if (method === "GET" && path === "/runner-groups") {
    return [200, { total_count: 1, runner_groups: [{ id: 1, name: "Default", default: true }] }];
  }
  if (method === "GET" && path === "/runners/downloads") {
    return [200, [{ os: "win", architecture: "x64", filename: "actions-runner-win-x64-2.328.0.zip" }]];
  }
  if (method === "POST" && path === "/runners/generate-jitconfig") {
    const { name, labels } = JSON.parse(body);
    if (runners.some((runner) => runner.name === name)) return [409, { message: "Already exists" }];
    const runner = { id: ++lastId, name, labels, online: false, busy: false, ephemeral: true };
    runners.push(runner);
    return [201, { runner: shown(runner), encoded_jit_config: `eyJqaXQi${lastId}` }];
  }
  if (method === "POST" && path === "/runners/registration-token") {
    return [201, { token: "AREGISTRATIONTOKEN", expires_at: new Date(Date.now() + 3600e3).toISOString() }];
  }
  const runner = runners.find((runner) => path === `/runners/${runner.id}`);
  if (!runner) return [404, { message: "Not Found" }];
  if (method === "GET") return [200, shown(runner)];
  if (method === "DELETE" && runner.busy) return [422, { message: "is currently running a job" }];
  runners = runners.filter((other) => other !== runner);
  return [204];
}

createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece));
  request.on("end", () => {
    const url = new URL(request.url, "http://localhost");
    let reply = [404, { message: "Not Found" }];
    if (url.pathname.startsWith("/-/runners")) {
      reply = control(request.method, url.pathname.split("/")[3], url.searchParams);
    } else if (request.headers.authorization !== `Bearer ${token}`) {
      reply = [401, { message: "Bad credentials" }];
    } else if (url.pathname.startsWith(scope)) {
      reply = answer(request.method, url.pathname.slice(scope.length), url.searchParams, body);
    }
    const [status, value] = reply;
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(value === undefined ? undefined : JSON.stringify(value));
  });
}).listen(0, "127.0.0.1", function () {
  console.log(this.address().port);
});
