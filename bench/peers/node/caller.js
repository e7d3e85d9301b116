// A caller's side, as bench/peers/lanes.py has it in Python.
"use strict";

const { ready, answer, now, sleep } = require("./line.js");
const { started } = require("./broker.js");

const percentile = (ordered, percent) => ordered[Math.max(0, Math.ceil((percent / 100) * ordered.length) - 1)] / 1e3;

started("caller").then((broker) => {
  const call = (payload) => broker.call("bench.echo", { payload });
  const known = () => {
    const found = broker.registry.getActionList({ onlyAvailable: true, withEndpoints: true });
    const action = found.find((each) => each.name === "bench.echo");
    return action && action.endpoints ? action.endpoints.filter((each) => each.available !== false).length : 0;
  };

  async function settle({ count, timeout_s }) {
    const until = now() + timeout_s * 1e9;
    while (known() < count) {
      if (now() > until) throw new Error(`${known()} of ${count} providers are known`);
      await sleep(20);
    }
    await call("x");
  }

  async function calls({ window, seconds, size, at_ns }) {
    const payload = "x".repeat(size);
    await sleep(Math.max(0, (at_ns - now()) / 1e6));
    const began = now();
    const until = began + seconds * 1e9;
    const spans = [];

    async function lane() {
      let count = 0;
      let found = payload;
      while (count === 0 || now() < until) {
        const sent = now();
        found = await call(payload);
        if (window === 1) spans.push(now() - sent);
        count += 1;
      }
      if (found.length !== size) throw new Error(`${found.length} bytes came back of ${size}`);
      return count;
    }

    const counts = await Promise.all(Array.from({ length: window }, lane));
    const found = { count: counts.reduce((a, b) => a + b, 0), began, ended: now() };
    if (spans.length) {
      spans.sort((a, b) => a - b);
      for (const percent of [50, 99, 99.9]) found[`p${percent}`] = percentile(spans, percent);
    }
    return found;
  }

  ready();
  answer({ settle, calls });
});
