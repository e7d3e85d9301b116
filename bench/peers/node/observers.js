// Several nodes in one process, and the moments at which each learned of a service, or that its node is gone.
"use strict";

const { ready, answer, now, sleep } = require("./line.js");
const { started } = require("./broker.js");

const JOINING_MAX = 20; // nodes that start at the same time
const members = [];

async function join() {
  const seen = new Map();
  const there = new Set();
  const note = (token) => seen.has(token) || seen.set(token, now());
  const broker = await started("observer");
  const look = () => {
    const names = new Set(broker.registry.getServiceList({ onlyAvailable: true }).map((each) => each.name));
    for (const name of names) if (!there.has(name)) there.add(name) && note("+" + name);
    for (const name of there) if (!names.has(name)) there.delete(name) && note("-" + name);
  };
  broker.localBus.on("$services.changed", look);
  broker.localBus.on("$node.connected", look);
  broker.localBus.on("$node.updated", look);
  broker.localBus.on("$node.disconnected", look);
  members.push({ seen, broker });
}

async function observe({ count }) {
  for (let left = count; left > 0; left -= JOINING_MAX) {
    await Promise.all(Array.from({ length: Math.min(left, JOINING_MAX) }, join));
  }
}

async function seen({ token, timeout_s }) {
  const until = now() + timeout_s * 1e9;
  for (;;) {
    const found = members.map((each) => each.seen.get(token) ?? null);
    if (!found.includes(null) || now() > until) return found;
    await sleep(20);
  }
}

ready();
answer({ observe, seen });
