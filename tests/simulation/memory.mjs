// The memories of clients in browsers, one call a line: [client, method, ...arguments] in, {value, since} out.

import { createInterface } from "node:readline";
import { Memory } from "../../src/carillon/static/carillon/carillon.js";

const memories = new Map();
for await (const line of createInterface({ input: process.stdin })) {
  const [client, method, ...given] = JSON.parse(line);
  const memory = memories.get(client) ?? new Memory();
  memories.set(client, memory);
  const value = memory[method](...given) ?? null;
  process.stdout.write(`${JSON.stringify({ value, since: memory.since })}\n`);
}
