// Plays the VMs of a simulated Hyper-V host (tests/powershell/modules/Hyper-V): boots a
// guest for each VM that is on, and ends it when the host turns the VM off or removes it.
//   node fake-vms.mjs HOST COMMAND...
// HOST is the simulated host's folder. COMMAND is run with the VM's id and the path of its
// disk, a folder that COMMAND makes. SIGTERM asks it to end, at once, all that it started.
import { spawn } from "node:child_process";
import { mkdirSync, openSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const [host, ...command] = process.argv.slice(2);
const guests = new Map();
mkdirSync(join(host, "guests"), { recursive: true });

function vmsThatAreOn() {
  const on = new Set();
  let files = [];
  try {
    files = readdirSync(join(host, "vms")).filter((name) => name.endsWith(".json"));
  } catch {} // No VM was ever made.
  for (const file of files) {
    try {
      const vm = JSON.parse(readFileSync(join(host, "vms", file)));
      if (vm.state === "Running") on.add(vm.id);
    } catch {} // It has just gone.
  }
  return on;
}

function boot(id) {
  const disk = join(host, "guests", id);
  const log = openSync(`${disk}.log`, "a");
  const [program, ...words] = command;
  // A group of its own.
  guests.set(id, spawn(program, [...words, id, disk], { detached: true, stdio: ["ignore", log, log] }));
}

function end(id) {
  guests.get(id).kill("SIGTERM");
  guests.delete(id);
}

function look() {
  const on = vmsThatAreOn();
  for (const id of guests.keys()) if (!on.has(id)) end(id);
  for (const id of on) if (!guests.has(id)) boot(id);
}

setInterval(look, 200);
process.on("SIGTERM", () => {
  for (const id of [...guests.keys()]) end(id);
  process.exit(0);
});
