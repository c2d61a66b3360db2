// Hyper-V's integration services for a VM that is a Wine prefix: brings the host's
// key-values into its registry, and tells the host what the VM says there, its heartbeat,
// and that it has turned itself off.
//   node wine-guest.mjs HOST ID WINE
// HOST is the simulated host's folder (tests/powershell/modules/Hyper-V), WINEPREFIX the VM.
import { spawnSync } from "node:child_process";
import { existsSync, openSync, closeSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [host, id, wine] = process.argv.slice(2);
const prefix = process.env.WINEPREFIX;
const key = "HKLM\\SOFTWARE\\Microsoft\\Virtual Machine";
const answer = join(prefix, "reg.txt");
let given = {};

// Wine's services keep the streams of what started them, so none is a pipe.
function reg(...words) {
  const out = openSync(answer, "w");
  const { status } = spawnSync(wine, ["reg", ...words], { stdio: ["ignore", out, out], timeout: 60000 });
  closeSync(out);
  return status === 0 ? readFileSync(answer, "utf8") : "";
}

function bringToGuest() {
  const { hostItems } = JSON.parse(readFileSync(join(host, "vms", `${id}.json`)));
  for (const [name, value] of Object.entries(hostItems)) {
    if (given[name] !== value && reg("add", `${key}\\External`, "/v", name, "/d", value, "/f")) given[name] = value;
  }
  for (const name of Object.keys(given)) {
    if (!(name in hostItems) && reg("delete", `${key}\\External`, "/v", name, "/f")) delete given[name];
  }
}

function tellHost() {
  // First: what it said last is then in the registry.
  const off = existsSync(join(prefix, "drive_c", "turned-off"));
  const said = [...reg("query", `${key}\\Guest`).matchAll(/^ {4}(\S+) {4}REG_SZ {4}(.*?)\r?$/gm)];
  const record = { guestItems: Object.fromEntries(said.map(([, name, value]) => [name, value])), heartbeat: 2 };
  if (off) record.state = "Off";
  const file = join(host, "vms", `${id}.guest`);
  writeFileSync(`${file}.new`, JSON.stringify(record));
  renameSync(`${file}.new`, file);
  return off;
}

do {
  bringToGuest();
  await new Promise((resolve) => setTimeout(resolve, 500));
} while (!tellHost());
