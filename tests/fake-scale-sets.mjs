// GitHub's runner scale sets, by scaleset-emulator (crates.io: scaleset), with what that lacks:
// the REST API for self-hosted runners, guests that run the jobs, and some of the Actions service's oddities.
//   node fake-scale-sets.mjs PAT WEBHOOK_SECRET
// starts the emulator and prints the port: GITHUB_API_URL is http://127.0.0.1:PORT/api/v3.
//
// A job that is the scale set's starts on a ready VM whose runner is registered, and ends at once. Its labels say what
// is special about it: `held` lasts until it is released, `silent` has a guest that tells the pool nothing.
//
// Besides the emulator's own control API under /_emulator:
//   POST   /-/pools          whose VMs run the jobs: the pool's address
//   POST   /-/release        the held jobs end
//   POST   /-/odd/NAME       turns an oddity on, which of those of `odd` that strike once lasts until then
//   DELETE /-/odd/NAME       turns it off
//   DELETE /-/scale-set      removes the scale set, as GitHub does
//   GET    /-/seen           how often each call of the pool got which answer, the capacities told, and every secret
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { createServer, request as send } from "node:http";
import { createInterface } from "node:readline";

const [pat, webhookSecret] = process.argv.slice(2);
const options = ["--port", "0", "--pat", pat, "--long-poll-ms", "50000"];
const emulator = spawn("scaleset-emulator", options, { stdio: ["ignore", "pipe", "inherit"] });
emulator.on("exit", () => process.exit(1));
process.on("SIGTERM", () => emulator.kill());
const [said] = await new Promise((started) => createInterface(emulator.stdout).once("line", (line) => started([line])));
const real = JSON.parse(said).url;
const api = "/api/v3";
const scaleSets = "/tenant/_apis/runtime/runnerscalesets";
const agents = "/tenant/_apis/distributedtask/pools/0/agents";
let here;

const odd = {
  // As github.com: jobs are assigned unasked, and the message that tells of it has no request id.
  unasked: false,
  // https://github.com/actions/actions-runner-controller/issues/4370
  noQueueUrl: false,
  // https://github.com/actions/scaleset/issues/123
  noRefresh: false,
};
const once = (name) => odd[name] && !(odd[name] = false);

const seen = { calls: {}, capacities: [], secrets: [] };
let queueToken;

async function ask(method, path, body, authorization) {
  const query = path.startsWith("/tenant") ? "?api-version=6.0-preview" : "";
  const answer = await fetch(real + path + query, { method, body: body && JSON.stringify(body), headers: authorization ? { authorization } : {} });
  const text = await answer.text();
  return { status: answer.status, json: text ? JSON.parse(text) : undefined };
}
const state = async () => (await ask("GET", "/_emulator/state")).json;

// As an administrator of the organization.
async function administer(method, path) {
  const { json: registration } = await ask("POST", `${api}/orgs/acme/actions/runners/registration-token`, undefined, `Bearer ${pat}`);
  const event = { url: here, runner_event: "register" };
  const { json: admin } = await ask("POST", `${api}/actions/runner-registration`, event, `RemoteAuth ${registration.token}`);
  return ask(method, path, undefined, `Bearer ${admin.token}`);
}

// ---- The REST API: https://docs.github.com/en/rest/actions/self-hosted-runners

let online = new Set();

async function rest(method, path, query) {
  if (path === "/runners/downloads") {
    return [200, [{ os: "win", architecture: "x64", filename: "actions-runner-win-x64-2.328.0.zip" }]];
  }
  const { runners } = await state();
  const shown = ({ id, name, job }) => ({ id, name, os: "Windows", status: online.has(name) ? "online" : "offline", busy: job !== null, labels: [] });
  if (path === "/runners" && method === "GET") {
    const named = runners.filter(({ name }) => !query.has("name") || name === query.get("name"));
    return [200, { total_count: named.length, runners: named.map(shown) }];
  }
  const id = /^\/runners\/(\d+)$/.exec(path)?.[1];
  const runner = runners.find((runner) => `${runner.id}` === id);
  if (!runner) return [404, { message: "Not Found" }];
  if (method === "GET") return [200, shown(runner)];
  const { status } = await administer("DELETE", `${agents}/${id}`);
  return status === 400 ? [422, { message: "is currently running a job" }] : [status];
}

// ---- The Actions service

// What a call is, for `seen`.
function nameOf(method, path) {
  const words = path.replace(api, "").replace("/tenant/_apis/runtime", "").split("/").filter((word) => word && !/\d/.test(word));
  return `${method} ${words.join("/")}`;
}

function oddSession(session) {
  if (once("noQueueUrl")) session.messageQueueUrl = "";
  return session;
}

function oddMessage(message) {
  if (!odd.unasked) return message;
  const told = JSON.parse(message.body).filter(({ messageType }) => messageType !== "JobAvailable");
  told.filter(({ messageType }) => messageType === "JobAssigned").forEach((job) => (job.runnerRequestId = 0));
  return { ...message, body: JSON.stringify(told) };
}

function keepSecrets(json) {
  const secrets = [json.token, json.encodedJITConfig, json.messageQueueAccessToken];
  seen.secrets.push(...secrets.filter(Boolean));
}

// What the emulator answers, as the pool gets it.
function edited(name, status, text) {
  if (!text) return text;
  const json = JSON.parse(text.replaceAll(real, here));
  keepSecrets(json);
  if (status >= 400) return `\ufeff${JSON.stringify(json)}`;
  if (name.includes("/sessions")) return JSON.stringify(oddSession(json));
  if (name === "GET queue") return JSON.stringify(oddMessage(json));
  return JSON.stringify(json);
}

function passOn(request, response, path, body, answer) {
  const name = nameOf(request.method, path);
  if (name === "GET queue") {
    queueToken = request.headers.authorization;
    seen.capacities.push(request.headers["x-scalesetmaxcapacity"]);
  }
  const { hostname, port } = new URL(real);
  const headers = { ...request.headers, host: `${hostname}:${port}`, "accept-encoding": "identity" };
  const upstream = send({ hostname, port, method: request.method, path: request.url, headers }, (emulated) => {
    let text = "";
    emulated.on("data", (chunk) => (text += chunk)).on("end", () => {
      const { "retry-after": retryAfter, "x-ratelimit-remaining": remaining } = emulated.headers;
      const limits = { ...(retryAfter && { "retry-after": retryAfter }), ...(remaining && { "x-ratelimit-remaining": remaining }) };
      answer(emulated.statusCode, edited(name, emulated.statusCode, text), limits);
    });
  });
  upstream.on("error", () => response.destroy());
  response.on("close", () => upstream.destroy());
  upstream.end(body);
}

// ---- The guests

const pools = new Set();
const running = new Map();
const released = new Set();

async function tellPool({ pool, vm, incarnation }, what, body) {
  const hmac = (key, text) => createHmac("sha256", key).update(text);
  const path = `/api/${what}/${vm}`;
  const secret = hmac(hmac(webhookSecret, "vm-callback").digest(), `${vm}/${incarnation}`).digest("hex");
  const authorization = `Bearer ${hmac(secret, `POST ${path}`).digest("hex")}`;
  await fetch(pool + path, { method: "POST", body: JSON.stringify(body), headers: { authorization, "content-type": "application/json" } });
}

async function vms() {
  const found = await Promise.all([...pools].map(async (pool) => {
    try {
      const { slots } = await (await fetch(`${pool}/api/status`)).json();
      return slots.map((slot) => ({ ...slot, pool }));
    } catch {
      return []; // It does not run.
    }
  }));
  return found.flat();
}

async function play() {
  const slots = await vms();
  online = new Set(slots.filter(({ state }) => state === "ready" || state === "running").map(({ runner }) => runner));
  const { jobs, runners } = await state();
  if (odd.unasked) {
    const offered = jobs.filter((job) => job.state === "available");
    for (const job of offered) await ask("POST", `${scaleSets}/${job.scaleSetId}/acquirejobs`, [job.id], queueToken);
  }
  const idle = new Set(runners.filter(({ job }) => job === null).map(({ name }) => name));
  for (const job of jobs.filter(({ state }) => state === "assigned")) {
    const slot = slots.find(({ state, retiring, runner }) => state === "ready" && !retiring && idle.delete(runner));
    if (!slot) break;
    const { status } = await ask("POST", `/_emulator/jobs/${job.id}/start`, { runnerName: slot.runner });
    if (status !== 200) continue;
    running.set(job.id, slot);
    if (!job.labels.includes("silent")) await tellPool(slot, "runner-started", { job: `job-${job.id}`, repository: "org/repo" });
  }
  for (const job of jobs.filter(({ id, state }) => state === "running" && running.has(id))) {
    if (job.labels.includes("held") && !released.has(job.id)) continue;
    const slot = running.get(job.id);
    running.delete(job.id);
    await ask("POST", `/_emulator/jobs/${job.id}/complete`, { result: "succeeded" });
    if (!job.labels.includes("silent")) await tellPool(slot, "runner-complete", { exit_code: 0 });
  }
}

async function playOn() {
  await play().catch((error) => console.error(error));
  setTimeout(playOn, 100);
}

// ---- For the script

async function control(method, [, what, name], body) {
  if (what === "seen") return [200, seen];
  if (what === "pools") return [204, void pools.add(body)];
  if (what === "odd" && name in odd) return [204, void (odd[name] = method === "POST")];
  if (what === "release") {
    (await state()).jobs.forEach(({ id }) => released.add(id));
    return [204];
  }
  if (what === "scale-set") {
    const { scaleSets: [set] } = await state();
    return [(await administer("DELETE", `${scaleSets}/${set.id}`)).status];
  }
  return [404, { message: "no such control" }];
}

async function handle(request, response, body) {
  const { pathname: path, searchParams: query } = new URL(request.url, here);
  const answer = (status, text, headers = {}) => {
    if (!path.startsWith("/-/") && !path.startsWith("/_emulator")) {
      const call = `${nameOf(request.method, path)} ${status}`;
      seen.calls[call] = (seen.calls[call] ?? 0) + 1;
    }
    response.writeHead(status, text ? { ...headers, "content-type": "application/json" } : headers).end(text);
  };
  const json = ([status, value]) => answer(status, value && JSON.stringify(value));
  if (path.startsWith("/-/")) return json(await control(request.method, path.slice(1).split("/"), body));
  const inOrganization = path.startsWith(`${api}/orgs/acme/actions/`) && path.replace(`${api}/orgs/acme/actions`, "");
  if (inOrganization && !inOrganization.endsWith("/registration-token")) {
    if (request.headers.authorization !== `Bearer ${pat}`) return json([401, { message: "Bad credentials" }]);
    return json(await rest(request.method, inOrganization, query));
  }
  if (request.method === "PATCH" && path.includes("/sessions/") && once("noRefresh")) {
    await ask("POST", `/_emulator/expire/session/${path.split("/")[5]}`);
    return json([404, { typeName: "RunnerAdminException", message: "The session is not known" }]);
  }
  passOn(request, response, path, body, answer);
}

const server = createServer((request, response) => {
  let body = "";
  request.on("data", (chunk) => (body += chunk));
  request.on("end", () => handle(request, response, body).catch((error) => {
    console.error(error);
    response.destroy();
  }));
});
server.listen(0, "127.0.0.1", () => {
  here = `http://127.0.0.1:${server.address().port}`;
  console.log(server.address().port);
  playOn();
});
