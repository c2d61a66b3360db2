// A GitHub that checks each request against GitHub's published OpenAPI
// description, and answers it well enough for the pool to go on.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { sign } from "@octokit/webhooks-methods";
import Ajv from "ajv";
import addFormats from "ajv-formats";
import { until, withPool } from "./mock-pool.mjs";

const file = createRequire(import.meta.url).resolve("@octokit/openapi/package.json").replace("package.json", "generated/api.github.com.json");
const description = JSON.parse(readFileSync(file, "utf8"));
const ajv = new Ajv({ strict: false, coerceTypes: false });
addFormats(ajv);
const resolve = (node) => (node?.$ref ? resolve(node.$ref.slice(2).split("/").reduce((at, key) => at[key.replaceAll("~1", "/")], description)) : node);
const inlined = (node) => {
  if (Array.isArray(node)) return node.map(inlined);
  if (node === null || typeof node !== "object") return node;
  return Object.fromEntries(Object.entries(resolve(node)).map(([key, value]) => [key, inlined(value)]));
};

const templates = Object.keys(description.paths).map((path) => ({
  path,
  pattern: new RegExp(`^${path.replace(/[.]/g, "\\.").replace(/\{[^}]+\}/g, "([^/]+)")}$`),
  parameters: path.split("{").length - 1,
})).sort((a, b) => a.parameters - b.parameters);

function problems(request, url, body) {
  const template = templates.find(({ path, pattern }) => pattern.test(url.pathname) && description.paths[path][request.method.toLowerCase()]);
  if (!template) return { operation: `${request.method} ${url.pathname}`, found: ["no such operation"] };
  const operation = description.paths[template.path][request.method.toLowerCase()];
  const found = [];
  const known = [...(description.paths[template.path].parameters ?? []), ...(operation.parameters ?? [])].map(resolve);
  for (const [name, value] of url.searchParams) {
    const parameter = known.find((p) => p.in === "query" && p.name === name);
    if (!parameter) found.push(`unknown query parameter ${name}`);
    else if (parameter.schema.type === "integer" && !/^\d+$/.test(value)) found.push(`${name}=${value} is not an integer`);
  }
  if (request.headers.accept !== "application/vnd.github+json") found.push(`Accept: ${request.headers.accept}`);
  if (request.headers["x-github-api-version"] !== "2022-11-28") found.push("X-GitHub-Api-Version is missing");
  if (!request.headers["user-agent"]) found.push("User-Agent is missing");
  if (request.headers.authorization !== "Bearer github_pat_test") found.push("wrong Authorization");
  const schema = resolve(operation.requestBody)?.content?.["application/json"]?.schema;
  if (schema && (body || resolve(operation.requestBody).required)) {
    const valid = ajv.compile(inlined(schema));
    if (!valid(body ? JSON.parse(body) : undefined)) found.push(ajv.errorsText(valid.errors));
  } else if (body && !schema && body !== "{}") {
    found.push("a body where none belongs");
  }
  return { operation: operation.operationId, found };
}

async function run(name, settings, expected) {
  const seen = new Map();
  const wrong = [];
  const runners = new Map();
  let last = 0;
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      const url = new URL(request.url, "http://github");
      const { operation, found } = problems(request, url, body);
      seen.set(operation, (seen.get(operation) ?? 0) + 1);
      found.forEach((problem) => wrong.push(`${operation}: ${problem}`));
      const answer = (status, json) => {
        response.writeHead(status, { "content-type": "application/json" });
        response.end(json === undefined ? undefined : JSON.stringify(json));
      };
      const id = Number(/runners\/(\d+)$/.exec(url.pathname)?.[1]);
      if (url.pathname.endsWith("/generate-jitconfig")) {
        const wanted = JSON.parse(body);
        const runner = { id: ++last, name: wanted.name, os: "unknown", status: "online", busy: false, labels: wanted.labels.map((name) => ({ name })) };
        runners.set(runner.id, runner);
        answer(201, { runner, encoded_jit_config: "jit" });
      } else if (url.pathname.endsWith("/registration-token")) {
        answer(201, { token: "token", expires_at: new Date(Date.now() + 3600e3).toISOString() });
      } else if (url.pathname.endsWith("/runner-groups")) {
        answer(200, { total_count: 2, runner_groups: [{ id: 1, name: "Default" }, { id: 7, name: "Big machines" }] });
      } else if (url.pathname.endsWith("/downloads")) {
        answer(200, [{ os: "win", architecture: "x64", download_url: "https://github.com/actions/runner/releases/download/v2.330.0/actions-runner-win-x64-2.330.0.zip", filename: "actions-runner-win-x64-2.330.0.zip" }]);
      } else if (id && request.method === "DELETE") {
        answer(runners.delete(id) ? 204 : 404);
      } else if (id) {
        runners.has(id) ? answer(200, runners.get(id)) : answer(404, { message: "Not Found" });
      } else if (url.pathname.endsWith("/actions/runners")) {
        const wanted = url.searchParams.get("name");
        const list = [...runners.values()].filter((r) => !wanted || r.name === wanted);
        answer(200, { total_count: list.length, runners: list });
      } else if (url.pathname.endsWith("/actions/runs")) {
        answer(200, { total_count: 0, workflow_runs: [] });
      } else {
        answer(404, { message: "Not Found" });
      }
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const api = `http://127.0.0.1:${server.address().port}`;
  await withPool(process.argv[2], { GITHUB_PAT: "github_pat_test", GITHUB_ORG: "octo", WEBHOOK_SECRET: "a-webhook-secret", GITHUB_API_URL: api, POOL_SIZE: "2", POLL_SECONDS: "1", ...settings }, async ({ url, health }) => {
    await until("two VMs are ready", async () => (await health()).ready === 2);
    const status = async () => (await fetch(`${url}/api/status`)).json();
    const { runner_id: runner, runner: runner_name } = (await status()).slots[0];
    if (runner) {
      // As after a job: the registration is gone, the webhook may be late.
      runners.delete(runner);
      const body = JSON.stringify({ action: "completed", workflow_job: { id: 1, labels: [], runner_id: runner, runner_name } });
      await fetch(`${url}/webhook`, { method: "POST", body, headers: { "x-github-event": "workflow_job", "x-hub-signature-256": await sign("a-webhook-secret", body) } });
      await until("the VM is replaced", async () => (await status()).slots[0].runner_id !== runner && (await health()).ready === 2);
    }
    await until("the monitor has made a round", () => expected.every((operation) => seen.has(operation)));
  });
  server.close();
  console.log(`${name}: ${[...seen].map(([operation, times]) => `${operation} ${times}`).join(", ")}`);
  assert.deepEqual(wrong, []);
}

const list = (scope) => [`actions/list-self-hosted-runners-for-${scope}`];
await run("organization, JIT", {}, [...list("org"), "actions/generate-runner-jitconfig-for-org", "actions/delete-self-hosted-runner-from-org", "actions/list-runner-applications-for-org"]);
await run("organization, JIT, runner group", { RUNNER_GROUP: "Big machines" }, ["actions/list-self-hosted-runner-groups-for-org"]);
await run("organization, registration token", { RUNNER_REGISTRATION: "token" }, [...list("org"), "actions/create-registration-token-for-org"]);
await run("repository, JIT", { GITHUB_REPO: "hello-world" }, [...list("repo"), "actions/generate-runner-jitconfig-for-repo", "actions/delete-self-hosted-runner-from-repo", "actions/list-workflow-runs-for-repo"]);
