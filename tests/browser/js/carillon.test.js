// The client module without a browser: a socket that the test plays, and a clock that the test turns.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { Carillon, backoff, classify, cookie, describe, rejectsSubscription, verdict } from "../../../src/carillon/static/carillon/carillon.js";

const settle = () => new Promise((resolve) => setImmediate(resolve));

class FakeSocket {
  static all = [];

  constructor(url, protocols) {
    this.url = url;
    this.offered = protocols;
    this.protocol = "";
    this.readyState = 0;
    this.sent = [];
    FakeSocket.all.push(this);
  }

  static get last() {
    return FakeSocket.all.at(-1);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
  }

  // What the server does:
  says(frame) {
    this.readyState = 1;
    this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }

  accepts(user = 7) {
    this.says({ accept: true, user });
  }

  answers(...groups) {
    this.says({ groups_current: groups, groups_left: [], groups_joined: groups });
  }

  /** Accepts and answers the subscription: the link stands, once promises have settled. */
  async stands(...groups) {
    this.accepts();
    this.answers(...groups);
    await settle();
  }

  closes(code) {
    this.readyState = 3;
    this.onclose?.({ code });
  }
}

function make(options = {}) {
  const network = new EventTarget();
  const link = new Carillon({
    url: "wss://tower.test/websocket/", xrftoken: "x", WebSocket: FakeSocket, random: () => 0.5, network, ...options,
  });
  const states = [];
  link.on("state", ({ state, attempt }) => states.push(attempt ? `${state} ${attempt}` : state));
  return { link, states, network };
}

beforeEach(() => {
  FakeSocket.all = [];
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
});

test("the back-off is jittered over the whole range and bounded", async () => {
  assert.equal(backoff(1, { random: () => 0 }), 0);
  assert.equal(backoff(1, { random: () => 0.999 }), 999);
  assert.equal(backoff(3, { random: () => 0.5 }), 2000);
  assert.equal(backoff(50, { random: () => 0.9999 }), 29_997);
  assert.equal(backoff(1e9, { cap: 100, random: () => 0.5 }), 50);
});

test("frames are told apart", async () => {
  assert.deepEqual(classify('{"accept": true, "user": 3}'), { kind: "accepted", user: 3, position: null });
  assert.deepEqual(classify('{"accept": false, "user": null, "close": true, "error": "expired"}'), { kind: "refused", reason: "expired" });
  assert.deepEqual(classify('{"groups_current": ["a"], "groups_left": [], "groups_joined": ["a"]}'), {
    kind: "groups", current: ["a"], left: [], joined: ["a"], asked: true,
  });
  assert.deepEqual(classify('{"error": "unknown channel nonsense"}'), { kind: "error", error: "unknown channel nonsense" });
  const event = { group_name: "jobs", unified_job_id: 4, status: "running", error: "part of the payload" };
  assert.deepEqual(classify(JSON.stringify(event)), { kind: "event", family: "jobs", event, group: null, position: null });
  for (const text of ["", "nonsense", "[]", "null", "3", "{}"]) assert.deepEqual(classify(text), { kind: "unknown" });
});

test("close codes: which heal by themselves", async () => {
  for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4408, 4999]) assert.ok(verdict(code).retry, String(code));
  for (const code of [4401, 4403, 1008, 1009]) assert.ok(!verdict(code).retry, String(code));
  for (const code of [1006, 4401, 4777]) assert.match(verdict(code).reason, /\w/);
});

test("a cookie is found, unquoted and decoded", async () => {
  assert.equal(cookie("csrftoken", 'a=1; csrftoken="ab=c%20d"; xcsrftoken=no'), "ab=c d");
  assert.equal(cookie("missing", "a=1"), "");
  assert.equal(cookie("csrftoken", "csrftoken=100%"), "100%"); // of somebody else, who does not encode
});

test("the state in words", async () => {
  const base = { attempt: 0, retryAt: null, reason: "", code: null, user: null };
  assert.equal(describe({ ...base, state: "connected" }), "Connected");
  assert.equal(describe({ ...base, state: "reconnecting", attempt: 2, retryAt: 4200 }, 1000), "Reconnecting in 4 s (attempt 2)");
  assert.equal(describe({ ...base, state: "reconnecting", attempt: 2 }), "Reconnecting now (attempt 2)");
  assert.equal(describe({ ...base, state: "refused", reason: "not logged in" }), "Refused: not logged in");
});

test("connects, subscribes with the xrftoken once accepted, and hands out events by family", async () => {
  const { link, states } = make();
  const heard = [];
  link.on("jobs", (event) => heard.push(["jobs", event.unified_job_id]));
  link.on("*", (event) => heard.push(["*", event.group_name]));
  link.subscribe({ jobs: ["status_changed"] });
  link.connect();
  assert.equal(FakeSocket.last.url, "wss://tower.test/websocket/");
  assert.deepEqual(FakeSocket.last.sent, []);
  FakeSocket.last.accepts();
  assert.deepEqual(FakeSocket.last.sent, [{ groups: { jobs: ["status_changed"] }, xrftoken: "x" }]);
  assert.deepEqual(states, ["connecting"], "not before the subscription stands");
  FakeSocket.last.answers("jobs-status_changed");
  await settle();
  assert.deepEqual(states, ["connecting", "connected"]);
  assert.equal(link.link.user, 7);
  FakeSocket.last.says({ group_name: "jobs", unified_job_id: 4, status: "running" });
  FakeSocket.last.says({ group_name: "schedules", id: 1 });
  assert.deepEqual(heard, [["jobs", 4], ["*", "jobs"], ["*", "schedules"]]);
});

test("a token goes into the URL", async () => {
  const { link } = make({ token: "a&b" });
  link.connect();
  assert.equal(FakeSocket.last.url, "wss://tower.test/websocket/?token=a%26b");
});

test("subscribe answers with what was denied beside what was joined, in order", async () => {
  const { link } = make();
  link.connect();
  await FakeSocket.last.stands();
  const first = link.subscribe({ job_events: [1, 2] });
  const second = link.subscribe({ jobs: ["summary"] });
  FakeSocket.last.says({ error: "access denied to channel job_events for resource id 2" });
  FakeSocket.last.answers("job_events-1");
  FakeSocket.last.answers("jobs-summary");
  assert.deepEqual(await first, {
    current: ["job_events-1"], left: [], joined: ["job_events-1"], errors: ["access denied to channel job_events for resource id 2"],
  });
  assert.deepEqual((await second).current, ["jobs-summary"]);
});

test("a rejected subscription rejects", async () => {
  const { link } = make();
  link.connect();
  await FakeSocket.last.stands();
  const promise = link.subscribe({ jobs: "no list" });
  FakeSocket.last.says({ error: "access denied to channel" });
  await assert.rejects(promise, /access denied/);
  assert.ok(rejectsSubscription("invalid message: groups is not an object"));
});

test("the word of a right that is lost answers no call", async () => {
  const { link } = make();
  const told = [];
  link.on("subscribed", ({ left }) => told.push(left));
  link.connect();
  await FakeSocket.last.stands();
  const call = link.subscribe({ jobs: ["summary"] });
  FakeSocket.last.says({ groups_current: [], groups_left: ["job_events-42"], groups_joined: [], asked: false });
  FakeSocket.last.answers("jobs-summary");
  assert.deepEqual((await call).current, ["jobs-summary"]);
  assert.deepEqual(told.slice(-2), [["job_events-42"], []]);
});

test("after a break: waits, comes back, subscribes again, and only then calls onreconnect", async () => {
  const { link, states } = make();
  const calls = [];
  link.onreconnect = () => calls.push("fetch");
  link.subscribe({ jobs: ["status_changed"] });
  link.connect();
  await FakeSocket.last.stands("jobs-status_changed");
  await settle();
  assert.deepEqual(calls, [], "the first connection is no reconnect");
  FakeSocket.last.closes(1006);
  assert.equal(link.link.retryAt, Date.now() + 500);
  assert.equal(link.link.reason, "the connection was lost");
  mock.timers.tick(499);
  assert.equal(FakeSocket.all.length, 1);
  mock.timers.tick(1);
  assert.equal(FakeSocket.all.length, 2);
  FakeSocket.last.accepts();
  assert.deepEqual(FakeSocket.last.sent[0].groups, { jobs: ["status_changed"] });
  await settle();
  assert.deepEqual(calls, [], "not before the subscription stands");
  FakeSocket.last.answers("jobs-status_changed");
  await settle();
  assert.deepEqual(calls, ["fetch"]);
  assert.deepEqual(states, ["connecting", "connected", "reconnecting 1", "reconnecting 1", "connected"]);
});

test("attempts are counted and waits grow to the cap, for as long as it takes", async () => {
  const { link } = make();
  link.connect();
  await FakeSocket.last.stands();
  FakeSocket.last.closes(1012);
  const waits = [];
  for (let attempt = 1; attempt <= 12; attempt++) {
    assert.equal(link.link.attempt, attempt);
    waits.push(link.link.retryAt - Date.now());
    mock.timers.tick(link.link.retryAt - Date.now());
    FakeSocket.last.closes(1006);
  }
  assert.deepEqual(waits.slice(0, 4), [500, 1000, 2000, 4000]);
  assert.equal(Math.max(...waits), 15_000);
});

test("let in and thrown out again: attempts go on counting until the link has stood for a while", async () => {
  const { link } = make();
  link.connect();
  const waits = [];
  for (let round = 0; round < 5; round++) {
    await FakeSocket.last.stands();
    assert.equal(link.link.attempt, 0);
    if (round === 3) mock.timers.tick(5000);
    FakeSocket.last.closes(1013);
    waits.push(link.link.retryAt - Date.now());
    mock.timers.tick(waits.at(-1));
  }
  assert.deepEqual(waits, [500, 1000, 2000, 500, 1000]);
});

test("even a goodbye of the server (1000) is no reason to stay away", async () => {
  const { link } = make();
  link.connect();
  await FakeSocket.last.stands();
  FakeSocket.last.closes(1000);
  assert.equal(link.link.state, "reconnecting");
});

test("refused: says why and does not come back until asked", async () => {
  const { link } = make();
  link.connect();
  FakeSocket.last.says({ accept: false, user: null, close: true, error: "token expired" });
  FakeSocket.last.closes(4401);
  assert.equal(link.link.state, "refused");
  assert.equal(link.link.reason, "token expired");
  mock.timers.tick(3_600_000);
  assert.equal(FakeSocket.all.length, 1);
  link.connect();
  assert.equal(FakeSocket.all.length, 2);
  assert.equal(link.link.state, "connecting");
});

test("a handshake that nobody answers is given up", async () => {
  const { link } = make();
  link.connect();
  mock.timers.tick(10_000);
  assert.equal(link.link.state, "reconnecting");
  assert.equal(link.link.reason, "no answer to the handshake");
  assert.equal(FakeSocket.all[0].readyState, 3);
});

test("let in but never answered: attempts go on counting", async () => {
  const { link } = make();
  link.connect();
  for (const attempt of [1, 2, 3]) {
    FakeSocket.last.accepts();
    mock.timers.tick(10_000);
    await settle();
    assert.equal(link.link.state, "reconnecting");
    assert.equal(link.link.attempt, attempt);
    mock.timers.tick(link.link.retryAt - Date.now());
  }
});

test("silence is probed with the subscription itself; no answer is a break", async () => {
  const { link } = make();
  link.subscribe({ jobs: ["summary"] });
  link.connect();
  await FakeSocket.last.stands("jobs-summary");
  mock.timers.tick(25_000);
  assert.equal(FakeSocket.last.sent.length, 2);
  assert.deepEqual(FakeSocket.last.sent[1], FakeSocket.last.sent[0]);
  FakeSocket.last.answers("jobs-summary");
  mock.timers.tick(24_999);
  assert.equal(FakeSocket.last.sent.length, 2);
  FakeSocket.last.says({ group_name: "jobs" }); // an event is a sign of life, too
  mock.timers.tick(24_999);
  assert.equal(FakeSocket.last.sent.length, 2);
  mock.timers.tick(1);
  assert.equal(FakeSocket.last.sent.length, 3);
  mock.timers.tick(10_000);
  assert.equal(link.link.state, "reconnecting");
  assert.equal(link.link.reason, "the server fell silent");
});

test("an answer that lies behind much else is waited for while anything comes", async () => {
  const { link } = make();
  link.connect();
  await FakeSocket.last.stands();
  const answer = link.subscribe({ jobs: ["summary"] });
  for (let second = 0; second < 30; second += 9) {
    mock.timers.tick(9000);
    FakeSocket.last.says({ group_name: "jobs" });
  }
  assert.equal(link.link.state, "connected");
  FakeSocket.last.answers("jobs-summary");
  assert.deepEqual((await answer).current, ["jobs-summary"]);
  const unanswered = link.subscribe({ jobs: ["summary"] });
  mock.timers.tick(10_000);
  assert.equal(link.link.reason, "the server fell silent");
  await assert.rejects(unanswered, /silent/);
});

test("an xrftoken that cannot be had is a refusal in words, and no link that is stuck", () => {
  const { link } = make({ xrftoken: () => { throw new Error("no such element"); } });
  link.connect();
  assert.equal(link.link.state, "refused");
  assert.match(link.link.reason, /no such element/);
});

test("the network's news: offline is probed at once, online ends the wait", async () => {
  const { link, network } = make();
  link.connect();
  await FakeSocket.last.stands();
  network.dispatchEvent(new Event("offline"));
  assert.equal(FakeSocket.last.sent.length, 2);
  FakeSocket.last.closes(1006);
  assert.equal(FakeSocket.all.length, 1);
  network.dispatchEvent(new Event("online"));
  assert.equal(FakeSocket.all.length, 2);
  await FakeSocket.last.stands();
  assert.equal(link.link.state, "connected");
  mock.timers.tick(500);
  assert.equal(FakeSocket.all.length, 2, "the attempt that was waiting is gone");
});

test("asked to connect while an attempt is under way, it opens no second socket", () => {
  const { link } = make();
  link.connect();
  link.connect();
  FakeSocket.last.closes(1006);
  link.connect(); // ends the wait
  link.connect();
  assert.equal(FakeSocket.all.length, 2);
});

test("closed is closed: nothing comes back, nothing is heard", async () => {
  const { link, states, network } = make();
  link.connect();
  const socket = FakeSocket.last;
  socket.accepts();
  socket.answers();
  await settle();
  link.close();
  socket.closes(1006);
  network.dispatchEvent(new Event("online"));
  mock.timers.tick(3_600_000);
  assert.equal(FakeSocket.all.length, 1);
  assert.deepEqual(states, ["connecting", "connected", "closed"]);
});

test("a subscription under way when the link breaks rejects and is made again", async () => {
  const { link } = make();
  link.connect();
  await FakeSocket.last.stands();
  const promise = link.subscribe({ jobs: ["summary"] });
  FakeSocket.last.closes(1006);
  await assert.rejects(promise, /lost/);
  mock.timers.tick(500);
  FakeSocket.last.accepts();
  assert.deepEqual(FakeSocket.last.sent[0].groups, { jobs: ["summary"] });
});

test("one listener's fault costs the others nothing", async () => {
  const { link } = make();
  const error = mock.method(console, "error", () => undefined);
  const heard = [];
  link.on("jobs", () => {
    throw new Error("mine");
  });
  link.on("jobs", (event) => heard.push(event));
  link.connect();
  await FakeSocket.last.stands();
  FakeSocket.last.says({ group_name: "jobs" });
  assert.equal(heard.length, 1);
  assert.equal(error.mock.callCount(), 1);
});

/** A server of version 2 on the newest socket: in, and the subscription answered. */
function accepts2(position) {
  FakeSocket.last.protocol = "carillon.v2";
  FakeSocket.last.says({ accept: true, user: 7, position });
}

/** It hears `jobs-summary` from "ep:100" on. */
async function subscribed(link) {
  link.subscribe({ jobs: ["summary"] });
  link.connect();
  accepts2("ep:100");
  FakeSocket.last.answers("jobs-summary");
  await settle();
  FakeSocket.last.says({ recovered: true, position: "ep:100" });
}

test("version 2: each event is heard once, and a reconnect asks from where it was", async () => {
  const { link } = make();
  const heard = [];
  const told = [];
  link.on("jobs", ({ n }) => heard.push(n));
  link.onreconnect = (how) => told.push(how);
  link.connect();
  link.subscribe({ jobs: ["summary"] });
  assert.deepEqual(FakeSocket.last.offered, ["carillon.v2"]);
  accepts2("ep:1");
  assert.equal(FakeSocket.last.sent[0].since, "ep:1");
  FakeSocket.last.answers("jobs-summary");
  FakeSocket.last.says({ recovered: true, position: "ep:1" });
  await settle();
  const event = (n) => ({ position: `ep:${n}`, group: "jobs-summary", event: { group_name: "jobs", n } });
  FakeSocket.last.says(event(2));
  FakeSocket.last.says({ position: "ep:5" });
  assert.equal(link.position, "ep:5");
  FakeSocket.last.says({ reconnect_after: 40 });
  FakeSocket.last.closes(1012);
  mock.timers.tick(41);
  accepts2("ep:9");
  assert.equal(FakeSocket.last.sent[0].since, "ep:5");
  FakeSocket.last.answers("jobs-summary");
  FakeSocket.last.says(event(2));
  FakeSocket.last.says(event(7));
  assert.equal(link.position, "ep:5", "until the replay is whole, it begins again where it began");
  FakeSocket.last.says({ recovered: true, position: "ep:9" });
  assert.equal(link.position, "ep:9");
  assert.deepEqual(heard, [2, 7]);
  assert.deepEqual(told, [{ recovered: true, reason: "", events: 1 }]);
  FakeSocket.last.says({ recovered: false, position: "other:3", reason: "epoch" });
  assert.deepEqual([told[1].recovered, told[1].reason], [false, "epoch"]);
  link.refresh("new");
  assert.deepEqual(FakeSocket.last.sent.at(-1), { refresh: "new" });
  link.close();
});

test("version 2: the first subscription begins where the state was looked at", async () => {
  const { link } = make();
  const told = [];
  link.onreconnect = (how) => told.push(how);
  link.subscribe({ jobs: ["summary"] });
  link.connect({ since: "ep:4" });
  accepts2("ep:10");
  assert.equal(FakeSocket.last.sent[0].since, "ep:4");
  FakeSocket.last.answers();
  await settle();
  FakeSocket.last.says({ recovered: true, position: "ep:10" });
  assert.deepEqual(told, []); // nothing had been heard that could have been missed
  link.close();
});

test("version 2: state, then events since its position", async () => {
  const { link } = make();
  link.connect();
  accepts2("ep:10");
  FakeSocket.last.answers();
  await settle();
  const subscribed = link.subscribe({ jobs: ["summary"] }, { since: "ep:4" });
  assert.equal(FakeSocket.last.sent.at(-1).since, "ep:4");
  assert.equal(link.position, "ep:4");
  link.close();
  await assert.rejects(subscribed, /closed/);
});

test("version 2: a later `since` while the link is away skips nothing of what was subscribed before", async () => {
  const { link } = make();
  const heard = [];
  link.on("*", (event) => heard.push(event.n));
  await subscribed(link);
  FakeSocket.last.says({ position: "ep:101", group: "jobs-summary", event: { group_name: "jobs", n: 101 } });
  FakeSocket.last.closes(1006);
  link.subscribe({ jobs: ["summary"], job_events: [42] }, { since: "ep:200" });
  link.retry();
  accepts2("ep:210");
  assert.equal(FakeSocket.last.sent[0].since, "ep:101");
  FakeSocket.last.answers("jobs-summary", "job_events-42");
  await settle();
  for (const [group, n] of [["jobs-summary", 150], ["job_events-42", 160], ["job_events-42", 205]]) {
    FakeSocket.last.says({ position: `ep:${n}`, group, event: { group_name: group.split("-")[0], n } });
  }
  assert.deepEqual(heard, [101, 150, 205]); // 160 is in the state that was shown
  link.close();
});

test("version 2: what is refused leaves what was subscribed", async () => {
  const { link } = make();
  const heard = [];
  link.on("*", (event) => heard.push(event.n));
  await subscribed(link);
  const event = (n) => ({ position: `ep:${n}`, group: "jobs-summary", event: { group_name: "jobs", n } });
  const refused = link.subscribe({ job_events: [1, 2, 3] }, { since: "ep:10" });
  FakeSocket.last.says(event(101));
  assert.equal(link.position, "ep:10", "what is asked for may begin there");
  FakeSocket.last.says({ error: "invalid message: more than 2 groups" });
  await assert.rejects(refused, /more than 2 groups/);
  FakeSocket.last.says(event(102));
  assert.equal(link.position, "ep:102");
  mock.timers.tick(25_000); // it probes with what stands
  assert.deepEqual(FakeSocket.last.sent.at(-1).groups, { jobs: ["summary"] });
  FakeSocket.last.closes(1006);
  link.retry();
  accepts2("ep:110");
  assert.deepEqual(FakeSocket.last.sent[0].groups, { jobs: ["summary"] });
  assert.equal(FakeSocket.last.sent[0].since, "ep:102");
  assert.deepEqual(heard, [101, 102]);
  link.close();
});

test("version 2: what a new link refuses leaves what was subscribed before, and the next begins with that", async () => {
  const { link } = make();
  await subscribed(link);
  const unanswered = link.subscribe({ job_events: [1, 2, 3] }, { since: "ep:10" });
  FakeSocket.last.closes(1006);
  await assert.rejects(unanswered, /lost/);
  link.retry();
  accepts2("ep:110");
  assert.deepEqual(FakeSocket.last.sent[0].groups, { job_events: [1, 2, 3] }, "made again");
  assert.equal(FakeSocket.last.sent[0].since, "ep:10");
  FakeSocket.last.says({ error: "invalid message: more than 2 groups" });
  await settle();
  assert.equal(link.link.state, "reconnecting");
  assert.equal(link.link.reason, "invalid message: more than 2 groups");
  link.retry();
  accepts2("ep:120");
  assert.deepEqual(FakeSocket.last.sent[0].groups, { jobs: ["summary"] });
  assert.equal(FakeSocket.last.sent[0].since, "ep:100");
  link.close();
});

test("refused from the beginning, the link stands with nothing subscribed", async () => {
  const { link, states } = make();
  link.subscribe({ job_events: [1, 2, 3] });
  link.connect();
  FakeSocket.last.accepts();
  FakeSocket.last.says({ error: "invalid message: more than 2 groups" });
  await settle();
  assert.deepEqual(states, ["connecting", "connected"]);
  FakeSocket.last.closes(1006);
  link.retry();
  FakeSocket.last.accepts();
  assert.deepEqual(FakeSocket.last.sent[0].groups, { job_events: [1, 2, 3] }, "there is nothing else to ask for");
  const answer = link.subscribe({ jobs: ["summary"] });
  FakeSocket.last.says({ error: "invalid message: more than 2 groups" });
  await settle();
  assert.equal(link.link.state, "connected");
  FakeSocket.last.answers("jobs-summary");
  assert.deepEqual((await answer).current, ["jobs-summary"]);
  link.close();
});

test("version 2: what was refused from the beginning holds no position back", async () => {
  const { link } = make();
  link.subscribe({ jobs: ["too long"] }, { since: "ep:10" });
  link.connect();
  for (const position of ["ep:100", "ep:150"]) {
    accepts2(position);
    assert.equal(FakeSocket.last.sent[0].since, position === "ep:100" ? "ep:10" : "ep:100");
    FakeSocket.last.says({ error: "invalid message: too long" });
    await settle();
    assert.equal(link.link.state, "connected");
    FakeSocket.last.closes(1006);
    link.retry();
  }
  accepts2("ep:160");
  FakeSocket.last.says({ error: "invalid message: too long" });
  await settle();
  const done = link.subscribe({ jobs: ["summary"] });
  FakeSocket.last.answers("jobs-summary");
  await done;
  FakeSocket.last.says({ position: "ep:170", group: "jobs-summary", event: { group_name: "jobs" } });
  FakeSocket.last.says({ position: "ep:900" });
  assert.equal(link.position, "ep:900");
  FakeSocket.last.closes(1006);
  link.retry();
  accepts2("ep:1000");
  assert.equal(FakeSocket.last.sent[0].since, "ep:900");
  link.close();
});

test("version 2: what cannot be sent yet is asked for again", async () => {
  const { link } = make();
  const told = [];
  link.onreconnect = (how) => told.push(how);
  link.subscribe({ jobs: ["summary"] });
  link.connect({ since: "ep:4" });
  for (const reason of ["timeout", "unavailable"]) {
    accepts2("ep:10");
    assert.equal(FakeSocket.last.sent[0].since, "ep:4");
    FakeSocket.last.answers("jobs-summary");
    await settle();
    FakeSocket.last.says({ recovered: false, position: "ep:10", reason });
    assert.equal(link.link.state, "reconnecting");
    assert.deepEqual(told, []);
    mock.timers.tick(link.link.retryAt - Date.now());
  }
  accepts2("ep:11");
  assert.equal(FakeSocket.last.sent[0].since, "ep:4");
  FakeSocket.last.answers("jobs-summary");
  await settle();
  FakeSocket.last.says({ recovered: false, position: "ep:11", reason: "retention" });
  assert.deepEqual(told, [{ recovered: false, reason: "retention", events: 0 }]);
  assert.equal(link.position, "ep:11");
  link.close();
});

test("what is no message waits for no answer", async () => {
  const { link } = make();
  link.connect();
  await FakeSocket.last.stands();
  await assert.rejects(link.subscribe({ job_events: [42n] }), TypeError);
  const answer = link.subscribe({ jobs: ["summary"] });
  FakeSocket.last.answers("jobs-summary");
  assert.deepEqual((await answer).current, ["jobs-summary"]);
  FakeSocket.last.closes(1006);
  link.retry();
  FakeSocket.last.accepts();
  assert.deepEqual(FakeSocket.last.sent[0].groups, { jobs: ["summary"] });
});

test("a listener may close the link, whatever it hears", async () => {
  for (const [name, wanted] of [["state", "connecting"], ["state", "connected"], ["state", "reconnecting"], ["subscribed"], ["jobs"]]) {
    FakeSocket.all = [];
    const { link } = make();
    const late = [];
    link.on(name, ({ state }) => (!wanted || state === wanted) && link.close());
    link.on("*", (event) => link.link.state === "closed" && late.push(event));
    link.connect();
    if (FakeSocket.last) {
      await FakeSocket.last.stands();
      FakeSocket.last.says({ group_name: "jobs", n: 1 });
      FakeSocket.last.closes(1006);
    }
    mock.timers.tick(60_000);
    await settle();
    assert.equal(link.link.state, "closed", `${name} ${wanted}`);
    assert.equal(FakeSocket.all.filter((socket) => socket.readyState < 2).length, 0, `${name} ${wanted}`);
    assert.deepEqual(late, []);
    link.connect();
    assert.ok(FakeSocket.all.length > 0 || wanted === "connecting", "it can be opened again");
    link.close();
  }
});

test("a listener that tries at once opens one socket", async () => {
  const { link } = make();
  link.on("state", ({ state, retryAt }) => state === "reconnecting" && retryAt !== null && link.retry());
  link.connect();
  await FakeSocket.last.stands();
  FakeSocket.last.closes(1006);
  mock.timers.tick(5_000);
  assert.equal(FakeSocket.all.length, 2);
});

test("what stood and is refused after a break is asked for again, from where it was", async () => {
  const { link } = make();
  const errors = [];
  link.on("error", (error) => errors.push(error));
  link.subscribe({ jobs: ["a"] });
  link.connect();
  FakeSocket.last.protocol = "carillon.v2";
  FakeSocket.last.says({ accept: true, user: 1, position: "e:5" });
  FakeSocket.last.answers("jobs-a");
  await settle();
  FakeSocket.last.closes(1006);
  mock.timers.tick(1_000);
  FakeSocket.last.protocol = "carillon.v2";
  FakeSocket.last.says({ accept: true, user: 1, position: "e:9" });
  FakeSocket.last.says({ error: "invalid message: too many groups" });
  await settle();
  assert.equal(link.link.state, "reconnecting");
  assert.deepEqual(errors, ["invalid message: too many groups"]);
  mock.timers.tick(5_000);
  FakeSocket.last.protocol = "carillon.v2";
  FakeSocket.last.says({ accept: true, user: 1, position: "e:9" });
  assert.equal(FakeSocket.last.sent[0].since, "e:5");
});

test("a token that comes while the socket is not let in yet is told", async () => {
  const { link } = make({ token: "old" });
  link.connect();
  link.refresh("new");
  FakeSocket.last.protocol = "carillon.v2";
  FakeSocket.last.says({ accept: true, user: 1, position: "e:1" });
  assert.deepEqual(FakeSocket.last.sent[0], { refresh: "new" });
});

test("what a server that restarts asked to wait ends with its connection", async () => {
  const { link } = make();
  link.connect();
  await FakeSocket.last.stands();
  FakeSocket.last.says({ reconnect_after: 60_000 });
  link.close();
  link.connect();
  await FakeSocket.last.stands();
  FakeSocket.last.closes(1006);
  assert.ok(link.link.retryAt - Date.now() <= 1_000);
});
