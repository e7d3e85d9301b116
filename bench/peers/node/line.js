// The child's side of bench/roles.py in Node: `ready(value)` once, then answers by name until standard input ends.
// Standard output belongs to the answers alone. Arguments are the JSON object that came on the command line.
"use strict";

const path = require("path");
const readline = require("readline");

const told = JSON.parse(process.argv[2]);
const load = (name) => require(path.join(told.modules, "node_modules", name));
const say = (found) => process.stdout.write(JSON.stringify(found) + "\n");
const now = () => Number(process.hrtime.bigint()); // Linux: the clock of Python's time.monotonic_ns()
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function ready(value = null) {
  say({ value });
}

function answer(does) {
  const lines = readline.createInterface({ input: process.stdin });
  lines.on("line", async (line) => {
    const { do: name, ...details } = JSON.parse(line);
    try {
      const value = await does[name](details);
      say({ value: value === undefined ? null : value });
    } catch (error) {
      say({ error: String(error.stack || error) });
    }
  });
  lines.on("close", () => process.exit(0));
}

module.exports = { told, load, ready, answer, now, sleep };
