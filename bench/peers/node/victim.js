// A node with one service, to be killed.
"use strict";

const { told, ready, answer } = require("./line.js");
const { started, echo } = require("./broker.js");

started("victim", [echo(told.name)]).then(() => {
  ready(told.name);
  answer({});
});
