// The pure parts of the page: terminal colours, the order of events, the count of results, times in words.

import assert from "node:assert/strict";
import { test } from "node:test";

import { PLAIN, colour256, parse, parseLine, sgr, strip } from "../../../src/tower/static/tower/ansi.js";
import { EventLog, lineCount, numbered, numberedBefore } from "../../../src/tower/static/tower/eventlog.js";
import { ago, duration, elapsed, midnight, program } from "../../../src/tower/static/tower/format.js";
import { Knowledge } from "../../../src/tower/static/tower/knowledge.js";
import { Tally } from "../../../src/tower/static/tower/tally.js";

const styled = (changes) => ({ ...PLAIN, ...changes });

test("SGR: attributes, 16 colours, 256 colours, true colour, both separators, resets", () => {
  const cases = [
    ["", {}],
    ["1", { bold: true }],
    ["1;31", { bold: true, fg: 1 }],
    ["97;104", { fg: 15, bg: 12 }],
    ["38;5;9", { fg: 9 }],
    ["38;5;208", { fg: "#ff8700" }],
    ["48;5;240", { bg: "#585858" }],
    ["38;2;1;2;255", { fg: "#0102ff" }],
    ["38:2::1:2:255", { fg: "#0102ff" }],
    ["38:5:208;4", { fg: "#ff8700", underline: true }],
    ["2;3;7;9", { faint: true, italic: true, inverse: true, strike: true }],
    ["38;5;999;1", { bold: true }],
    ["38;2;1;2", {}],
    ["1;22;4;24;31;39", {}],
    ["31;0", {}],
    ["31;;1", { bold: true }],
  ];
  for (const [parameters, changes] of cases) assert.deepEqual(sgr(PLAIN, parameters), styled(changes), parameters);
  assert.equal(colour256(16), "#000000");
  assert.equal(colour256(231), "#ffffff");
  assert.equal(colour256(255), "#eeeeee");
});

test("hostile output takes time in proportion to its length", { timeout: 10_000 }, () => {
  const n = 2 ** 20;
  const unfinished = ["\x1b[", "\x1b]", "\x1b[38:2:", "\x1b(", "\x1bP", "\x1b[1;", "\x9b", "\r\n", "\n"];
  const hostile = [
    `${"\r".repeat(n)}x`,
    "\r".repeat(n),
    "x\r".repeat(n / 2),
    `\x1b[${"0".repeat(n)}`,
    `\x1b[${"0;".repeat(n / 2)}m`,
    `\x1b[${"38:2:".repeat(n / 5)}m`,
    `\x1b[${" ".repeat(n)}`,
    ...unfinished.map((text) => text.repeat(n / text.length)),
  ];
  for (const text of hostile) assert.ok(strip(text).length <= n);
});

test("a line has no end of spans", () => {
  const { spans } = parseLine("\x1b[31ma\x1b[32mb".repeat(10_000));
  assert.equal(spans.length, 501);
  assert.equal(spans.map((span) => span.text).join(""), "ab".repeat(10_000));
});

test("markup stays text", () => {
  assert.deepEqual(parse("<img src=x onerror=alert(1)>"), [[{ text: "<img src=x onerror=alert(1)>", style: PLAIN }]]);
});

test("a colour runs on to the next line of the same event, not to the next event", () => {
  const [first, second] = parse("\x1b[31mone\ntwo\x1b[0m three");
  assert.deepEqual(first, [{ text: "one", style: styled({ fg: 1 }) }]);
  assert.deepEqual(second, [{ text: "two", style: styled({ fg: 1 }) }, { text: " three", style: PLAIN }]);
  assert.deepEqual(parse("next"), [[{ text: "next", style: PLAIN }]]);
});

test("lines: CRLF, a trailing line feed, empty ones, none", () => {
  assert.deepEqual(parse(""), []);
  assert.equal(parse("\r\nTASK [x] ***").length, 2);
  assert.equal(parse("one\r\ntwo\r\n").length, 2);
  assert.equal(strip("\r\nTASK\r\n"), "\nTASK");
  assert.equal(parse("", 0).length, 0);
  assert.equal(parse("", 1).length, 1, "one empty line");
  assert.equal(parse("one\n", 2).length, 2, "a line and an empty one");
  assert.equal(parse("one\r\n", 1).length, 1);
  assert.equal(parse("one\ntwo", 7).length, 2, "a wrong count adds nothing");
  assert.deepEqual([lineCount({ start_line: 3, end_line: 5 }), lineCount({}), lineCount({ start_line: 3, end_line: null })], [2, null, null]);
});

test("other escapes and control characters are taken out, even broken ones", () => {
  for (const text of [
    "a\x1b[2Kb", "a\x1b]0;title\x07b", "a\x1b]8;;http://x\x1b\\b", "a\x1b(Bb", "a\x1b[?25lb", "a\x00\x08b", "a\x9bb", "a\x1b[1;b"]) {
    assert.match(strip(text), /^ab?$/, JSON.stringify(text));
  }
  assert.equal(strip("tab\there"), "tab\there");
});

test("a progress bar that paints over itself shows what it painted last", () => {
  assert.equal(strip("10%\r50%\r100%\r\n"), "100%");
});

test("a carriage return that only colours follow paints nothing over, and what was painted over leaves its colours", () => {
  assert.equal(strip("\x1b[0;33mtotal 12\r\x1b[0m\n\x1b[0;33mhome\r\x1b[0m"), "total 12\nhome");
  assert.equal(strip("10%\r100%\r\x1b[0m\r\r\n"), "100%");
  assert.deepEqual(parse("\x1b[31mred\x1b[0m\rok\nnext"), [[{ text: "ok", style: PLAIN }], [{ text: "next", style: PLAIN }]]);
  assert.deepEqual(parse("10%\x1b[31m\r20%"), [[{ text: "20%", style: styled({ fg: 1 }) }]]);
});

test("a line of a megabyte of escapes is parsed whole", () => {
  // Were the time quadratic in the length, the suite's own time limit would end this.
  const line = "\x1b[31mx\x1b[0m".repeat(100_000) + "\x1b]".repeat(1000) + "\x1b[".repeat(10_000);
  assert.ok(strip(line).length >= 100_000);
});

const events = (...counters) => counters.map((counter) => ({ counter }));
const numbers = (list) => list.map(({ counter }) => counter);

test("events come out in order and once, however they come in", () => {
  const log = new EventLog();
  assert.deepEqual(numbers(log.add(events(2, 3))), []);
  assert.deepEqual(log.gap(), { after: 0, before: 2 });
  assert.deepEqual(numbers(log.add(events(1))), [1, 2, 3]);
  assert.deepEqual(numbers(log.add(events(3, 2, 4, 4))), [4]);
  assert.equal(log.gap(), null);
  assert.deepEqual(numbers(log.add([{ counter: "5" }, {}, { counter: -1 }])), []);
});

test("a gap that nobody can fill is named and passed", () => {
  const log = new EventLog();
  log.add(events(1, 5, 6, 9));
  const { missing, due } = log.skip();
  assert.deepEqual(missing, { from: 2, to: 4 });
  assert.deepEqual(numbers(due), [5, 6]);
  assert.deepEqual(log.gap(), { after: 6, before: 9 });
  assert.deepEqual(new EventLog().skip(), { missing: null, due: [] });
});

test("what waits behind a gap is bounded: the nearest is kept", () => {
  const log = new EventLog(3);
  log.add(events(9, 8, 7, 6, 5));
  assert.deepEqual(numbers(log.add(events(1, 2, 3, 4))), [1, 2, 3, 4, 5, 6, 7]);
});

test("what is left to be asked for elsewhere leaves no gap", () => {
  const log = new EventLog();
  log.add(events(40, 51, 52));
  log.start(50);
  assert.deepEqual(log.gap(), { after: 50, before: 51 });
  assert.deepEqual(numbers(log.add(events(50, 51))), [51, 52]);
  assert.equal(log.gap(), null);
});

test("lines have the numbers that events say, else those counted on from before or back from behind", () => {
  const list = [{ stdout: "a\nb" }, { stdout: "" }, { stdout: "c", start_line: 6, end_line: 7 }, { stdout: "d" }];
  const firsts = (entries) => entries.filter(({ lines }) => lines.length > 0).map(({ first }) => first);
  assert.deepEqual(firsts(numbered(list, 2)), [3, 7, 8]);
  assert.deepEqual(firsts(numberedBefore(list, 9)), [5, 7, 8]);
  assert.deepEqual(firsts(numberedBefore(list.slice(0, 2), 9)), [7]);
});

test("any order of any batch gives the same stream", () => {
  let seed = 42;
  const random = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648;
  for (let round = 0; round < 50; round++) {
    const log = new EventLog();
    const order = Array.from({ length: 100 }, (_, index) => index + 1).sort(() => random() - 0.5);
    const out = [];
    while (order.length) out.push(...numbers(log.add(events(...order.splice(0, 1 + Math.floor(random() * 9))))));
    assert.deepEqual(out, Array.from({ length: 100 }, (_, index) => index + 1));
  }
});

test("results are counted as they come, and Ansible's totals have the last word", () => {
  const tally = new Tally();
  for (const event of [
    { event: "playbook_on_play_start", play: "Web" },
    { event: "playbook_on_task_start", task: "Install", play: "Web" },
    { event: "runner_on_ok", changed: true },
    { event: "runner_on_ok" },
    { event: "runner_on_skipped" },
    { event: "runner_on_failed", failed: true },
    { event: "runner_on_failed", failed: true, event_data: { ignore_errors: true } },
    { event: "runner_item_on_ok", changed: true },
  ]) tally.add(event);
  assert.deepEqual(tally.counts, { ok: 3, changed: 1, failed: 1, unreachable: 0, skipped: 1, rescued: 0, ignored: 1 });
  assert.deepEqual([tally.tasks, tally.task, tally.play], [1, "Install", "Web"]);
  tally.add({ event: "playbook_on_stats", event_data: { ok: { a: 5, b: 1 }, changed: { a: 2 }, failures: {}, rescued: { a: 1 } } });
  assert.deepEqual(tally.counts, { ok: 6, changed: 2, failed: 0, unreachable: 0, skipped: 0, rescued: 1, ignored: 0 });
});

test("results go on from the server's summary of those before", () => {
  const before = { events: 9, lines: 9, tasks: 4, ok: 5, changed: 1, failed: 0, unreachable: 0, skipped: 2, ignored: 1 };
  const tally = new Tally();
  tally.add({ event: "runner_on_ok", task: "Install", play: "Web" });
  tally.precede(before);
  assert.deepEqual(tally.counts, { ok: 6, changed: 1, failed: 0, unreachable: 0, skipped: 2, rescued: 0, ignored: 1 });
  assert.deepEqual([tally.tasks, tally.task, tally.play], [4, "Install", "Web"]);
  const ended = new Tally();
  ended.add({ event: "playbook_on_stats", event_data: { ok: { web1: 7 } } });
  ended.precede(before); // they are in Ansible's own totals already
  assert.deepEqual([ended.counts.ok, ended.counts.skipped, ended.tasks], [7, 0, 4]);
});

test("times in words", () => {
  assert.deepEqual([0.44, 9.94, 9.96, 59.6, 187, 7512].map(duration), ["0.4 s", "9.9 s", "10 s", "1 min 00 s", "3 min 07 s", "2 h 05 min"]);
  assert.equal(duration(null), "–");
  const now = Date.parse("2025-11-23T12:00:00Z");
  assert.equal(ago("2025-11-23T11:57:10Z", now), "2 minutes ago");
  assert.equal(ago("2025-11-23T16:59:59Z", now), "in 5 hours");
  assert.equal(ago("2025-11-23T11:59:50Z", now), "just now");
  assert.equal(elapsed({ started: "2025-11-23T11:59:00Z", finished: null, status: "running" }, now), 60);
  assert.equal(elapsed({ started: null, finished: null, status: "pending" }, now), null);
});

test("what a view knows: nothing is claimed before it was loaded, and each failure says when it is tried again", () => {
  const known = new Knowledge();
  assert.deepEqual([known.state, known.known, known.words("The list")], ["loading", false, ""]);
  assert.deepEqual([known.failing, known.settled], [false, false]);
  const bad = { message: "The server cannot answer right now (502).", status: 502 };
  assert.deepEqual(Array.from({ length: 7 }, () => known.fail(bad, 0)), [1000, 2000, 4000, 8000, 15000, 30000, 30000]);
  assert.deepEqual([known.state, known.known], ["failed", false]);
  assert.equal(known.words("The list"), `The list is not loaded: ${bad.message}`);
  assert.deepEqual([known.next(10_000), known.next(29_001), known.next(30_000)], ["Next try in 20 s.", "Next try in 1 s.", "Trying again."]);
  assert.deepEqual([known.failing, known.settled], [true, false]);
  known.succeed();
  assert.deepEqual([known.state, known.known, known.words("The list"), known.next(0)], ["loaded", true, "", ""]);
  assert.deepEqual([known.failing, known.settled], [false, true]);
  assert.equal(known.fail(bad, 0), 1000);
  assert.deepEqual([known.state, known.known], ["stale", true]);
  assert.equal(known.words("The list"), `The list may be out of date: ${bad.message}`);
  known.forget();
  assert.deepEqual([known.state, known.known, known.words("The list")], ["loading", false, ""]);
  known.fail(bad, 0);
  known.forget();
  assert.equal(known.words("The list"), `The list is not loaded: ${bad.message}`);
});

test("a day and a program in words", () => {
  const begins = midnight("2026-11-01");
  assert.deepEqual([begins.getFullYear(), begins.getMonth(), begins.getDate(), begins.getHours()], [2026, 10, 1, 0]);
  for (const none of ["", "soon", "2026-13-01", "2026-11-01T12:00"]) assert.equal(midnight(none), null);
  assert.equal(program("Mozilla/5.0 (X11) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0"), "Edge");
  assert.equal(program("awxkit/1 like Chrome/140.0"), "awxkit/1 like Chrome/140.0");
  assert.equal(program(""), "–");
});

test("what a view knows: nobody asks again where the answer would be the same", () => {
  for (const status of [400, 401, 403, 404]) {
    const known = new Knowledge();
    assert.equal(known.fail({ message: "There is no job 9.", status }, 0), null);
    assert.deepEqual([known.words("Job 9"), known.next(0), known.settled], ["There is no job 9.", "", true]);
  }
});
