// The pages of docs/how-to/resumable-consumer.md and token-streams.md, as they stand there, on a socket that is played.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

function load(page, name, names) {
  const text = readFileSync(new URL(`../../../docs/how-to/${page}`, import.meta.url), "utf8");
  const code = [...text.matchAll(/^```js\n(.*?)^```$/gms)].at(-1)[1];
  return new Function(...Object.keys(names), `${code}; return ${name};`)(...Object.values(names));
}

function world() {
  const opened = [];
  const state = { opened, reloads: 0 };
  class WebSocket {
    constructor(url) {
      this.query = new URL(url).searchParams;
      opened.push(this);
    }
    says(frame) { this.onmessage({ data: JSON.stringify(frame) }); }
    close() { this.closed = true; this.onclose({}); }
  }
  const location = { host: "carillon.test", reload: () => { state.reloads += 1; } };
  const setTimeout = (again) => again();
  return { state, names: { WebSocket, location, setTimeout } };
}

test("a chat comes back with the last position that it had", () => {
  const { state, names } = world();
  const shown = [];
  load("resumable-consumer.md", "join", names)("tower", (text) => shown.push(text));
  const [first] = state.opened;
  assert.equal(first.query.get("since"), "");
  first.says({ position: "e:1" });
  first.says({ text: "a", position: "e:2" });
  first.close();
  const second = state.opened[1];
  assert.equal(second.query.get("since"), "e:2");
  second.close(); // before it heard anything
  const third = state.opened[2];
  assert.equal(third.query.get("since"), "e:2");
  third.says({ text: "b", position: "e:3" });
  third.says({ recovered: true, position: "e:4" });
  assert.deepEqual([shown, state.reloads], [["a", "b"], 0]);
  third.says({ recovered: false, position: "e:9", reason: "retention" });
  assert.equal(state.reloads, 1);
});

test("an answer begins again at its beginning, and ends", async () => {
  const { state, names } = world();
  const shown = [];
  const fetchAnswer = () => assert.fail("the log has all of it");
  load("token-streams.md", "follow", { ...names, fetchAnswer })("a1", "e:1", (text) => shown.push(text));
  const [first] = state.opened;
  first.says({ at: 0, piece: "The ", position: "e:2" });
  first.close();
  const second = state.opened[1];
  assert.equal(second.query.get("since"), "e:1");
  second.says({ at: 0, piece: "The ", position: "e:2" });
  second.says({ at: 1, piece: "\u{1f514} bells", position: "e:3" });
  second.says({ at: 2, piece: " ring", position: "e:4" });
  second.says({ at: 0, piece: "The \u{1f514}", position: "e:5" }); // of a writer that began again
  second.says({ at: 1, piece: " bells", position: "e:6" });
  assert.equal(shown.at(-1), "The \u{1f514} bells");
  second.says({ at: 2, done: true, position: "e:10" });
  assert.equal(second.closed, true);
  assert.equal(state.opened.length, 2);
});

/** An answer that the log no longer has whole, and what the database says of it, one saying a time. */
function late(...saved) {
  const { state, names } = world();
  const shown = [];
  const fetchAnswer = async () => {
    const next = saved.shift();
    if (next === undefined) throw new Error("away");
    return next;
  };
  load("token-streams.md", "follow", { ...names, fetchAnswer })("a1", "e:1", (text) => shown.push(text));
  return { state, shown };
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

test("an answer that is older than the log is fetched, and asked for no more", async () => {
  const { state, shown } = late({ text: "all of it", done: true });
  state.opened[0].says({ recovered: false, position: "e:9", reason: "retention" });
  await settled();
  assert.deepEqual([shown, state.opened[0].closed, state.opened.length], [["all of it"], true, 1]);
});

test("an answer whose beginning is lost shows nothing until it is whole", async () => {
  const { state, shown } = late({ text: "", done: false }, { text: "all of it", done: true });
  const [socket] = state.opened;
  socket.says({ recovered: false, position: "e:9", reason: "retention" });
  await settled();
  socket.says({ at: 7, piece: "its end", position: "e:10" });
  assert.deepEqual(shown, []);
  socket.says({ at: 8, done: true, position: "e:11" });
  await settled();
  assert.deepEqual([shown, socket.closed, state.opened.length], [["all of it"], true, 1]);
});

test("an answer that cannot be fetched is asked for again", async () => {
  const { state, shown } = late();
  state.opened[0].says({ recovered: false, position: "e:9", reason: "retention" });
  await settled();
  assert.deepEqual([shown, state.opened.length, state.opened[1].query.get("since")], [[], 2, "e:1"]);
});
