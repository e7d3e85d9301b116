// The node where the others begin.
"use strict";

const { ready, answer } = require("./line.js");
const { started } = require("./broker.js");

started("seed").then(() => {
  ready();
  answer({});
});
