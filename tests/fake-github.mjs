// A GitHub for the pool and for its runners: as much of the REST API for
// self-hosted runners as the pool uses, and as much of the Actions service as
// GitHub's own runner uses to take one job. All is in memory.
//   node fake-github.mjs PAT [WEBHOOK_URL WEBHOOK_SECRET]
// prints its port. With a webhook it delivers workflow_job events, as GitHub does.
// FAKE_GITHUB_ADDRESS: where runners reach it, if not on this machine.
// With FAKE_GITHUB_APP=ID,FILE,SECONDS it takes no PAT, but the tokens of the GitHub App
// of that id, whose private key is in FILE; each lasts so many seconds.
//
// For whoever plays GitHub's users:
//   POST   /-/jobs  {"script","shell"}     queues a job; answers with its id
//   POST   /-/jobs/ID                      keeps what a job has to say: any JSON
//   GET    /-/jobs                         every job: {"id","state","result","runner","report"}
//   GET    /-/runners                      every runner's name
//   GET    /-/online                       the names of those that are online
//   POST   /-/runners/NAME?online=&busy=   says so of a runner that is only played
//   DELETE /-/runners/NAME                 forgets a runner
//   GET    /-/app                          how many sign-ins and requests of the App were taken, and its tokens
//   DELETE /-/app                          refuses the tokens that were given so far
import { createHmac, createPublicKey, generateKeyPairSync, randomUUID, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const [pat, webhookUrl, webhookSecret] = process.argv.slice(2);
const address = process.env.FAKE_GITHUB_ADDRESS;
const scopes = ["/orgs/acme/actions", "/repos/acme/app/actions"];
const pollSeconds = 5;
const later = (seconds) => new Date(Date.now() + seconds * 1000).toISOString();
const base64 = (text) => Buffer.from(text).toString("base64");

let runners = [];
const jobs = [];
let lastId = 0;
let here = "";

// ---- The REST API: https://docs.github.com/en/rest/actions/self-hosted-runners

const shown = (runner) => ({
  id: runner.id,
  name: runner.name,
  os: "Windows",
  status: runner.online ? "online" : "offline",
  busy: runner.busy,
  ephemeral: true,
  labels: runner.labels.map((name, id) => ({ id, name, type: "custom" })),
});

function rest(method, path, query, body) {
  if (method === "GET" && path === "/runners") {
    const named = runners.filter((runner) => !query.has("name") || runner.name === query.get("name"));
    return [200, { total_count: named.length, runners: named.map(shown) }];
  }
  if (method === "GET" && path === "/runner-groups") {
    return [200, { total_count: 1, runner_groups: [{ id: 1, name: "Default", default: true }] }];
  }
  if (method === "GET" && path === "/runs") return [200, { total_count: 0, workflow_runs: [] }];
  if (method === "GET" && path === "/runners/downloads") {
    return [200, [{ os: "win", architecture: "x64", filename: "actions-runner-win-x64-2.328.0.zip" }]];
  }
  if (method === "POST" && path === "/runners/generate-jitconfig") {
    const { name, labels } = body;
    if (runners.some((runner) => runner.name === name)) return [409, { message: "Already exists" }];
    const runner = { id: ++lastId, name, labels, online: false, busy: false };
    runners.push(runner);
    return [201, { runner: shown(runner), encoded_jit_config: jitConfig(runner) }];
  }
  if (method === "POST" && path === "/runners/registration-token") {
    return [201, { token: "AREGISTRATIONTOKEN", expires_at: later(3600) }];
  }
  const runner = runners.find((runner) => path === `/runners/${runner.id}`);
  if (!runner) return [404, { message: "Not Found" }];
  if (method === "GET") return [200, shown(runner)];
  if (runner.busy) return [422, { message: "is currently running a job" }];
  forget(runner);
  return [204];
}

function forget(runner) {
  runners = runners.filter((other) => other !== runner);
}

// ---- A GitHub App: https://docs.github.com/en/rest/apps/apps

const [appId, appKey, appSeconds] = process.env.FAKE_GITHUB_APP?.split(",") ?? [];
const app = { publicKey: appKey && createPublicKey(readFileSync(appKey)), signIns: 0, requests: 0, tokens: [] };
const installed = { organization_self_hosted_runners: "write", metadata: "read", contents: "read" };

// Why a JSON web token is not taken.
// https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app
function faultOf(jwt) {
  const [head, body, signature] = jwt.split(".");
  const part = (text) => JSON.parse(Buffer.from(text, "base64url"));
  if (part(head).alg !== "RS256") return "alg";
  if (!verify("RSA-SHA256", Buffer.from(`${head}.${body}`), app.publicKey, Buffer.from(signature, "base64url"))) return "signature";
  const { iss, iat, exp } = part(body);
  const now = Date.now() / 1000;
  if (iss !== appId) return "iss";
  if (!(Number.isInteger(iat) && iat <= now)) return "iat";
  if (!(Number.isInteger(exp) && exp > now && exp <= now + 600)) return "exp";
}

function signIn(method, path, body, bearer) {
  const fault = faultOf(bearer);
  if (fault) return [401, { message: `A JSON web token could not be decoded: ${fault}` }];
  app.signIns += 1;
  if (method === "GET") return [200, { id: 7, permissions: installed, suspended_at: null }];
  if (path !== "/app/installations/7/access_tokens") return [404, { message: "Not Found" }];
  if (JSON.stringify(body) !== '{"permissions":{"organization_self_hosted_runners":"write"}}') return [422, { message: "more than the pool needs" }];
  const given = { token: `ghs_${randomUUID()}`, expires_at: later(appSeconds) };
  app.tokens.push(given);
  return [201, { ...given, permissions: body.permissions }];
}

function isAppsToken(bearer) {
  const taken = app.tokens.some(({ token, expires_at, refused }) => token === bearer && !refused && new Date(expires_at) > new Date());
  if (taken) app.requests += 1;
  return taken;
}

// ---- The runner's side: actions/runner, src/Runner.Listener and src/Sdk

// Every runner has the same key: making one takes long, and nothing checks it here.
const key = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ format: "jwk" });
const bytes = (name) => Buffer.from(key[name], "base64url").toString("base64");

// Read by ConfigurationStore.cs. FAKE_GITHUB_TOKENS=1 gives a token in place of an RSA key, which not every system can import.
function jitConfig(runner) {
  const url = `${here}/actions/`;
  const credentials = process.env.FAKE_GITHUB_TOKENS
    ? { Scheme: "OAuthAccessToken", Data: { Token: accessToken(runner.name) } }
    : { Scheme: "OAuth", Data: { ClientId: runner.name, AuthorizationUrl: `${url}token`, RequireFipsCryptography: "True" } };
  const files = {
    ".runner": {
      AgentId: runner.id, AgentName: runner.name, PoolId: 1, PoolName: "Default", Ephemeral: true,
      ServerUrl: url, ServerUrlV2: url, UseV2Flow: true, WorkFolder: "_work",
    },
    ".credentials": credentials,
    ".credentials_rsaparams": {
      d: bytes("d"), dp: bytes("dp"), dq: bytes("dq"), exponent: bytes("e"),
      inverseQ: bytes("qi"), modulus: bytes("n"), p: bytes("p"), q: bytes("q"),
    },
  };
  const encoded = Object.entries(files).map(([name, value]) => [name, base64(JSON.stringify(value))]);
  return base64(JSON.stringify(Object.fromEntries(encoded)));
}

// A JSON Web Token that tells whose it is. The signature is none.
const base64url = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const accessToken = (name) => [base64url({ alg: "HS256", typ: "JWT" }), base64url({ name, exp: 4700000000 }), "c2ln"].join(".");
const claims = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
const errorOfBroker = (errorKind, errorMessage) => ({ source: "actions-broker-listener", errorKind, statusCode: 400, errorMessage });

async function actions(request, response, path, body) {
  if (path === "/token") {
    const { iss } = claims(new URLSearchParams(body).get("client_assertion"));
    if (!runners.some((runner) => runner.name === iss)) return [400, { error: "invalid_client" }];
    return [200, { access_token: accessToken(iss), token_type: "bearer", expires_in: 3600 }];
  }
  // The run service is asked with the job's own token.
  if (path.startsWith("/run/")) return run(path, JSON.parse(body || "{}"));
  const { name } = claims(request.headers.authorization);
  const runner = runners.find((runner) => runner.name === name);
  if (path === "/session" && request.method === "POST") {
    if (!runner) return [403, { message: "no such runner" }];
    runner.online = true;
    return [200, { ...JSON.parse(body), sessionId: randomUUID() }];
  }
  if (path === "/session") {
    if (runner) runner.online = false;
    return [200, {}];
  }
  if (path === "/message") return message(response, name);
  if (path === "/acknowledge") return [200, {}];
  return [404, { message: "Not Found" }];
}

// A long poll: a job, if one waits for this runner, else nothing after some seconds.
async function message(response, name) {
  let gone = false;
  response.on("close", () => (gone = true));
  for (const end = Date.now() + pollSeconds * 1000; Date.now() < end && !gone; ) {
    const runner = runners.find((runner) => runner.name === name);
    // Told so, a listener cancels the job that its Worker is just ending.
    if (!runner && !jobs.some((job) => job.runner === name)) return [404, errorOfBroker("RunnerNotFound", "Runner not found")];
    const job = jobs.find((job) => job.state === "queued");
    if (job && runner && !runner.busy) {
      Object.assign(job, { state: "in_progress", runner: name, runnerId: runner.id });
      runner.busy = true;
      deliver("in_progress", job);
      const body = { id: `${job.id}`, runner_request_id: job.uuid, run_service_url: `${here}/actions/run/${job.id}/`, billing_owner_id: "o", should_acknowledge: false };
      return [200, { messageId: job.id, messageType: "RunnerJobRequest", body: JSON.stringify(body) }];
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return [202];
}

function run(path, body) {
  const [, , id, what] = path.split("/");
  const job = jobs.find((job) => `${job.id}` === id);
  if (!job) return [404, { message: "Not Found" }];
  if (what === "acquirejob") return [200, jobMessage(job)];
  if (what === "renewjob") return [200, { lockedUntil: later(600) }];
  if (what === "completejob") {
    Object.assign(job, { state: "completed", result: body.conclusion ?? body.Conclusion ?? "?" });
    runners = runners.filter((runner) => runner.name !== job.runner);
    deliver("completed", job);
    return [200, {}];
  }
  return [404, { message: "Not Found" }];
}

// AgentJobRequestMessage of one script step.
function jobMessage(job) {
  const dictionary = (values) => ({ t: 2, d: Object.entries(values).map(([k, v]) => ({ k, v })) });
  const literal = (lit) => ({ lit, type: 0 });
  const inputs = Object.entries({ script: job.script, ...(job.shell && { shell: job.shell }) });
  const service = `${here}/actions/run/${job.id}/`;
  return {
    messageType: "RunnerJobRequest",
    plan: { scopeIdentifier: randomUUID(), planType: "free", version: 12, planId: randomUUID(), planGroup: "g", artifactUri: "x:///a" },
    timeline: { id: randomUUID(), changeId: 1 },
    jobId: job.uuid,
    jobDisplayName: "build",
    jobName: "build",
    requestId: job.id,
    lockedUntil: later(600),
    resources: {
      endpoints: [{ name: "SystemVssConnection", url: service, authorization: { scheme: "OAuth", parameters: { AccessToken: accessToken("job") } }, data: {} }],
    },
    contextData: {
      github: dictionary({ repository: "acme/app", repository_owner: "acme", server_url: here, event_name: "push", workspace: "", run_id: `${job.id}`, sha: "0", ref: "refs/heads/main", job: "build" }),
      needs: dictionary({}),
      strategy: dictionary({}),
      matrix: null,
    },
    variables: {
      "system.github.job": { value: "build" },
      "system.github.token": { value: "a-job-token", isSecret: true },
      github_token: { value: "a-job-token", isSecret: true },
      "system.github.results_endpoint": { value: `${here}/results/` },
    },
    mask: [],
    environmentVariables: [],
    defaults: [],
    fileTable: [".github/workflows/build.yml"],
    steps: [
      {
        type: "action",
        reference: { type: "script" },
        id: randomUUID(),
        name: "__run",
        contextName: "__run",
        condition: "success()",
        displayNameToken: literal("run"),
        inputs: { type: 2, map: inputs.map(([name, value]) => ({ Key: literal(name), Value: literal(value) })) },
      },
    ],
  };
}

// ---- Webhooks: https://docs.github.com/en/webhooks/webhook-events-and-payloads#workflow_job

function deliver(action, job) {
  if (!webhookUrl) return;
  const workflowJob = { id: job.id, run_id: job.id, labels: ["self-hosted"], runner_id: job.runnerId ?? null, runner_name: job.runner ?? null };
  const body = JSON.stringify({ action, workflow_job: workflowJob });
  const headers = {
    "Content-Type": "application/json",
    "X-GitHub-Event": "workflow_job",
    "X-GitHub-Delivery": randomUUID(),
    "X-Hub-Signature-256": `sha256=${createHmac("sha256", webhookSecret).update(body).digest("hex")}`,
  };
  // A delivery that fails is not repeated by GitHub either.
  fetch(webhookUrl, { method: "POST", headers, body }).catch(() => {});
}

// ---- The controls

function control(method, kind, name, query, body) {
  if (kind === "jobs" && method === "POST" && name) {
    const job = jobs.find((job) => `${job.id}` === name);
    if (!job) return [404, {}];
    job.report = JSON.parse(body);
    return [200, {}];
  }
  if (kind === "jobs" && method === "POST") {
    const job = { id: 1000 + jobs.length, uuid: randomUUID(), state: "queued", result: null, runner: null, report: null, ...JSON.parse(body) };
    jobs.push(job);
    deliver("queued", job);
    return [200, { id: job.id }];
  }
  if (kind === "jobs") return [200, jobs.map(({ id, state, result, runner, report }) => ({ id, state, result, runner, report }))];
  if (kind === "app" && method === "DELETE") app.tokens.forEach((token) => (token.refused = true));
  if (kind === "app") return [200, { signIns: app.signIns, requests: app.requests, tokens: app.tokens.length }];
  if (kind === "online") return [200, runners.filter((runner) => runner.online).map((runner) => runner.name)];
  if (kind !== "runners") return [404, {}];
  if (!name) return [200, runners.map((runner) => runner.name)];
  const runner = runners.find((runner) => runner.name === name);
  if (!runner) return [404, {}];
  if (method === "DELETE") forget(runner);
  for (const key of ["online", "busy"]) {
    if (query.has(key)) runner[key] = query.get(key) === "true";
  }
  return [200, shown(runner)];
}

async function answer(request, response, body) {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  if (pathname.startsWith("/-/")) {
    const [, , kind, name] = pathname.split("/");
    return control(request.method, kind, name, searchParams, body);
  }
  if (pathname.startsWith("/actions/")) return actions(request, response, pathname.slice("/actions".length), body);
  const bearer = request.headers.authorization?.replace("Bearer ", "") ?? "";
  if (appId && (pathname === "/orgs/acme/installation" || pathname.startsWith("/app/"))) {
    return signIn(request.method, pathname, JSON.parse(body || "{}"), bearer);
  }
  if (appId ? !isAppsToken(bearer) : bearer !== pat) return [401, { message: "Bad credentials" }];
  const scope = scopes.find((scope) => pathname.startsWith(scope));
  if (!scope) return [404, { message: "Not Found" }];
  return rest(request.method, pathname.slice(scope.length), searchParams, JSON.parse(body || "{}"));
}

createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece));
  request.on("end", async () => {
    const [status, value] = await answer(request, response, body).catch((error) => [500, { message: `${error}` }]);
    const text = value === undefined ? "" : JSON.stringify(value);
    response.writeHead(status, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) });
    response.end(text);
  });
}).listen(0, address ? "0.0.0.0" : "127.0.0.1", function () {
  here = `http://${address ?? "127.0.0.1"}:${this.address().port}`;
  console.log(this.address().port);
});
