// Runs the binary for a check and stops it again.
import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

// Below the range from which systems give ports to connections and to whoever asks for any.
export async function freePort() {
  for (;;) {
    const port = 10000 + Math.floor(Math.random() * 22000);
    const server = createServer();
    const isFree = await new Promise((done) => server.once("error", () => done(false)).listen(port, () => done(true)));
    if (!isFree) continue;
    await new Promise((done) => server.close(done));
    return port;
  }
}

export async function until(what, holds, seconds = 240) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    try {
      if (await holds()) return;
    } catch {
      // Not listening yet.
    }
    if (Date.now() > deadline) throw new Error(`waited in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

export async function withPool(binary, settings, use) {
  const port = await freePort();
  const mock = { USE_MOCK: "true", PORT: String(port), MOCK_CREATE_SECONDS: "0.05", MOCK_BOOT_SECONDS: "0.05", MOCK_JOB_SECONDS: "0.2" };
  const env = { PATH: process.env.PATH, ...mock, ...settings };
  const child = spawn(binary, { env, cwd: mkdtempSync(join(tmpdir(), "pool-")), stdio: ["ignore", "inherit", "pipe"] });
  let log = "";
  child.stderr.on("data", (chunk) => (log += chunk));
  const ended = new Promise((done) => child.on("exit", (code) => done(code)));
  const url = `http://127.0.0.1:${port}`;
  const health = async () => (await fetch(`${url}/health`)).json();
  try {
    await use({ url, health });
    child.kill("SIGINT");
    const code = await ended;
    if (code !== 0) throw new Error(`the pool ended with exit code ${code}`);
  } catch (error) {
    child.kill("SIGKILL");
    console.error(log);
    throw error;
  }
}
