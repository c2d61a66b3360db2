// All workflow_job examples and a ping, signed by @octokit/webhooks-methods,
// through the running binary.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { sign } from "@octokit/webhooks-methods";
import { until, withPool } from "./mock-pool.mjs";

const examples = createRequire(import.meta.url)("@octokit/webhooks-examples");
const payloads = (event) => examples.find((entry) => entry.name === event).examples;
const secret = "mock-secret";

// The examples' labels, so that their queued jobs are for this pool.
await withPool(process.argv[2], { RUNNER_LABELS: "ubuntu-latest,k8s" }, async ({ url, health }) => {
  await until("four VMs are ready", async () => (await health()).ready === 4);
  const deliver = async (event, payload, signature) => {
    const body = JSON.stringify(payload);
    const headers = { "content-type": "application/json", "x-github-event": event, "x-github-delivery": crypto.randomUUID() };
    headers["x-hub-signature-256"] = signature ?? (await sign(secret, body));
    const response = await fetch(`${url}/webhook`, { method: "POST", headers, body });
    return `${response.status} ${await response.text()}`;
  };
  const jobs = payloads("workflow_job");
  assert.equal(jobs.length, 8);
  for (const payload of jobs) {
    const answer = await deliver("workflow_job", payload);
    const { id, labels } = payload.workflow_job;
    console.log(`workflow_job ${payload.action} (job ${id}, labels ${labels}): ${answer}`);
    assert.equal(answer, "200 OK");
    assert.equal(await deliver("workflow_job", payload, await sign("another secret", JSON.stringify(payload))), "401 Invalid signature");
  }
  const ping = payloads("ping")[0];
  const answer = await deliver("ping", ping);
  console.log(`ping: ${answer}`);
  assert.match(answer, /^200 /);
  const withAction = (action) => jobs.filter((p) => p.action === action).map((p) => p.workflow_job.id);
  const over = withAction("completed");
  const queued = new Set(withAction("queued").filter((id) => !over.includes(id)));
  await until(`${queued.size} queued job has run`, async () => {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    return Number(/jobs_ended_total{outcome="ended"} (\d+)/.exec(metrics)[1]) >= queued.size;
  });
  await until("its VM is replaced", async () => (await health()).ready === 4);
  console.log(`${queued.size} queued and not completed: it ran, and its VM was replaced`);
});
