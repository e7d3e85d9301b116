// A node with one service, whose action answers with its payload.
"use strict";

const { ready, answer } = require("./line.js");
const { started, echo } = require("./broker.js");

started("provider", [echo("bench")]).then(() => {
  ready();
  answer({});
});
