// The status page in a real browser, over the answers of a real pool and over those of a busy
// one (page-status.json), with text in it as a stranger might choose it.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { chromium } from "playwright-core";
import { until, withPool } from "./mock-pool.mjs";

const [, , binary, executablePath, fixture, screenshots] = process.argv;
const screen = readFileSync(join(dirname(fixture), "../src/sim/screen.png"));
const views = [
  { name: "light", colorScheme: "light", width: 1200 },
  { name: "dark", colorScheme: "dark", width: 1200 },
  { name: "phone", colorScheme: "light", width: 390 },
];
// The last hundred jobs of a busy pool.
function pastJobs(now) {
  const time = (seconds) => new Date(now - seconds * 1000).toISOString().replace(".000", "");
  const repositories = ["acme/shop", "acme/ledger", "acme/installer"];
  const names = ["build", "test (net8.0, x64)", "package", "integration"];
  return Array.from({ length: 100 }, (_, at) => {
    const [repository, run, ended] = [repositories[at % 3], 17900000400 - at, 30 + at * 95];
    const [wait_seconds, run_seconds] = [at % 17 ? 2 + ((at * at * 13) % 29) : 140, 90 + ((at * at * 37 + at * 101) % 433)];
    const outcome = at === 61 ? "job_timeout" : at % 11 === 5 ? "failure" : at % 23 === 7 ? "cancelled" : "success";
    const url = `https://github.com/${repository}/actions/runs/${run}`;
    const [queued_at, started_at, ended_at] = [ended + run_seconds + wait_seconds, ended + run_seconds, ended].map(time);
    const vm = { slot: 1 + (at % 6), vm: `runner-${1 + (at % 6)}`, incarnation: `7d5c0085${String(at).padStart(8, "0")}` };
    return { id: 51300000900 - at, run_id: run, name: names[at % 4], repository, url, ...vm, queued_at, started_at, ended_at, wait_seconds, run_seconds, outcome };
  });
}

const patience = 240000;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"], timeout: patience });

// Opens the page. Whatever it complains of, or asks of another host, fails the run.
async function open(url, { colorScheme, width }, status) {
  const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 }, locale: "en-US", timezoneId: "UTC" });
  context.setDefaultTimeout(patience);
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(`${error}`));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("dialog", (dialog) => faults.push(`a dialog: ${dialog.message()}`));
  page.on("request", (request) => new URL(request.url()).origin !== url && !request.url().startsWith("data:") && faults.push(`a request to ${request.url()}`));
  if (status) {
    await page.route("**/api/status", (route) => route.fulfill({ json: status }));
    await page.route("**/api/failed-vms/*", (route) => route.fulfill({ contentType: "image/png", body: screen }));
  }
  await page.goto(`${url}/`);
  await page.waitForSelector("#slots tr");
  return { page, faults, close: () => context.close() };
}
const texts = (page, selector) => page.locator(selector).allInnerTexts();
const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
// The contrast of text and its background by WCAG 2.2, the lowest on the page.
const lowestContrast = (page) =>
  page.evaluate(() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (color) => {
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
      const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = getComputedStyle(at).backgroundColor;
        if (color !== "rgba(0, 0, 0, 0)") return color;
      }
      return "white";
    };
    const visible = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
    return visible
      .map((element) => {
        const [dark, light] = [luminance(getComputedStyle(element).color), luminance(background(element))].sort((a, b) => a - b);
        return { ratio: (light + 0.05) / (dark + 0.05), text: element.textContent.slice(0, 40) };
      })
      .sort((a, b) => a.ratio - b.ratio)[0];
  });

try {
  await withPool(binary, { MOCK_JOB_SECONDS: "4" }, async ({ url, health }) => {
    await until("four VMs are ready", async () => (await health()).ready === 4);
    const { page, faults, close } = await open(url, views[0]);
    await until("the page shows four ready slots", async () => (await texts(page, "#slots td:nth-child(2)")).join() === "ready,ready,ready,ready");
    assert.equal(await page.locator("#health").innerText(), "healthy");
    const { createHmac } = await import("node:crypto");
    let id = 0;
    const queueJob = () => {
      const body = JSON.stringify({ action: "queued", workflow_job: { id: ++id, labels: ["self-hosted"] } });
      const signature = `sha256=${createHmac("sha256", "mock-secret").update(body).digest("hex")}`;
      return fetch(`${url}/webhook`, { method: "POST", headers: { "x-github-event": "workflow_job", "x-hub-signature-256": signature }, body });
    };
    await until("the page, left alone, shows the job", async () => {
      // A page that is slow to look may miss one.
      const { running, jobs_waiting } = await health();
      if (running + jobs_waiting === 0) await queueJob();
      return (await texts(page, "#slots td:nth-child(5)")).some((job) => job.includes("mock-org/simulated"));
    });
    await until("the page shows that it has ended", async () => (await texts(page, "#jobs tr")).some((job) => job.includes("mock-org/simulated")));
    console.log((await texts(page, "#slots tr, #jobs tr")).map((slot) => slot.replace(/\s+/g, " ")).join("\n"));
    assert.deepEqual(faults, []);

    // A request that fails is a message in the browser's console, whatever the page does.
    await page.route("**/api/status", (route) => route.abort());
    await until("the page says that the pool does not answer", async () => (await page.locator("#asked").innerText()).startsWith("no answer since"));
    await page.unroute("**/api/status");
    await until("it shows the pool again", async () => (await page.locator("#asked").innerText()).startsWith("as of"));
    await close();

    const status = JSON.parse(readFileSync(fixture));
    status.jobs = pastJobs(Date.parse(status.now));
    // What is made up here has the form of what the pool says.
    const said = await (await fetch(`${url}/api/status`)).json();
    const form = (made) => Object.keys(made).sort();
    assert.deepEqual(form(status), form({ reasons: [], ...said }));
    assert.deepEqual(form(status.image), form(said.image));
    assert.deepEqual(form(status.slots[0]), form(said.slots[0]));
    assert.deepEqual(form(status.jobs[0]), form(said.jobs[0]));
    for (const view of views) {
      const { page, faults, close } = await open(url, view, status);
      assert.equal((await texts(page, "#slots tr")).length, status.slots.length);
      assert.equal((await texts(page, "#jobs tr")).length, 10);
      if (screenshots) await page.screenshot({ path: join(screenshots, `status-page-${view.name}.png`) });
      await page.click("#all");
      assert.equal((await texts(page, "#jobs tr")).length, status.jobs.length);
      assert.equal((await texts(page, "#failures tr")).length, status.failures.length);
      await page.locator("#failures img").scrollIntoViewIfNeeded();
      await until("the screen of the VM that did not boot is shown", () => page.evaluate(() => document.querySelector("#failures img").naturalWidth > 0));
      assert.equal(await page.locator("#chart rect").count(), 2 * status.jobs.length);
      const wide = await overflow(page);
      assert.equal(wide, 0, `${view.name}: ${wide} pixels do not fit`);
      const contrast = await lowestContrast(page);
      assert.ok(contrast.ratio >= 4.5, `${view.name}: "${contrast.text}" has a contrast of ${contrast.ratio.toFixed(2)}`);
      const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      console.log(`${view.name}: ${view.width} pixels, background ${background}, contrast at least ${contrast.ratio.toFixed(1)}`);
      assert.deepEqual(faults, []);
      await close();
    }

    const withQueue = structuredClone(status);
    withQueue.intake = "scaleset";
    withQueue.webhooks = null;
    withQueue.queue = { name: "host-1", connected_since: "2026-11-30T09:00:00Z", last_message_at: null, assigned: 3, running: 2, error: null };
    const around = async (status) => {
      const { page, faults, close } = await open(url, views[2], status);
      const pairs = await texts(page, "#around div");
      const reasons = await texts(page, "#reasons li");
      assert.equal(await overflow(page), 0);
      assert.deepEqual(faults, []);
      await close();
      return { pairs: pairs.map((pair) => pair.replace(/\s+/g, " ")), reasons };
    };
    const { pairs } = await around(withQueue);
    const image = ["image built 2026-11-09", "runner 2.336.0", "newest runner 2.337.1", "Windows ends 2026-12-24"];
    assert.deepEqual(pairs.slice(0, 4), image);
    const shown = ["scale set host-1", "queue connected since 11/30/26, 9:00:00 AM", "queue's last message none since the start", "its jobs at GitHub 3 assigned, 2 running"];
    assert.deepEqual(pairs.filter((pair) => /scale set|queue|jobs/.test(pair)), shown);
    assert.ok(!pairs.some((pair) => pair.includes("webhook")), `${pairs}`);
    Object.assign(withQueue.queue, { connected_since: null, error: "cannot be read: no route" });
    const closed = await around(withQueue);
    assert.ok(closed.pairs.includes("queue not connected"), `${closed.pairs}`);
    assert.ok(closed.reasons.includes("the queue cannot be read: no route"), `${closed.reasons}`);
    console.log("a pool with a scale set shows its queue, and nothing of webhooks");

    const markup = "<img src=x onerror=alert(1)><script>alert(2)</script>";
    const hostile = structuredClone(status);
    for (const job of [...hostile.jobs, ...hostile.slots.map((slot) => slot.job).filter(Boolean)]) {
      Object.assign(job, { name: markup, repository: markup, url: "javascript:alert(3)" });
    }
    hostile.failures.forEach((failure) => (failure.reason = markup));
    const strange = await open(url, views[0], hostile);
    assert.equal(await strange.page.locator("img").count(), status.failures.filter((failure) => failure.picture).length);
    assert.equal(await strange.page.locator('table a:not([href^="/api/failed-vms/"])').count(), 0);
    assert.ok((await texts(strange.page, "#failures td:nth-child(3)"))[0].includes(markup), "markup is shown as text");
    assert.deepEqual(strange.faults, []);
    await strange.close();
    console.log("markup in a job's name is text, and no link but https is one");
  });
} finally {
  await browser.close();
}
