// The official parser's word on the document on standard input: a line for each complaint, and status 1 if there is one.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
for (const { path, message } of diagnostics) console.log(`${path.join(".")}: ${message}`);
process.exit(document && diagnostics.length === 0 ? 0 : 1);
