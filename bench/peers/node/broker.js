// A Moleculer node. Over TCP it begins with the node "seed" on a known port of loopback, and learns of the others from
// it; UDP discovery, which would leave the machine, is off. All else is Moleculer's default.
"use strict";

const { told, load } = require("./line.js");
const { ServiceBroker } = load("moleculer");

let made = 0;

function transporterOf(nodeID) {
  if (told.transporter !== "tcp") return told.transporter;
  const isSeed = nodeID === "seed";
  const urls = isSeed ? [] : [`tcp://127.0.0.1:${told.port}/seed`];
  return { type: "TCP", options: { udpDiscovery: false, port: isSeed ? told.port : null, urls, useHostname: false } };
}

async function started(name, services = []) {
  const nodeID = name === "seed" ? name : `${name}-${process.pid}-${made++}`;
  const broker = new ServiceBroker({ nodeID, transporter: transporterOf(nodeID), logger: false });
  for (const service of services) broker.createService(service);
  await broker.start();
  return broker;
}

const echo = (name) => ({ name, actions: { echo: (context) => context.params.payload } });

module.exports = { started, echo };
