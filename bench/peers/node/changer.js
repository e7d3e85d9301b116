// A node that gets one service after the other; each is told to the others by Moleculer's own debounced INFO.
"use strict";

const { ready, answer, now } = require("./line.js");
const { started, echo } = require("./broker.js");

started("changer").then((broker) => {
  async function change({ name }) {
    const began = now();
    const service = broker.createService(echo(name));
    await broker.waitForServices(service.fullName);
    return began;
  }

  ready();
  answer({ change });
});
