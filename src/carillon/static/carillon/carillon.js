/**
 * Carillon's client for browsers: one module, no dependency.
 *
 *     const link = new Carillon();
 *     link.on("jobs", (event) => console.log(event.unified_job_id, event.status));
 *     link.on("state", (link) => console.log(describe(link)));
 *     link.onreconnect = () => fetchWhatWasMissed();
 *     link.subscribe({ jobs: ["status_changed", "summary"] });
 *     link.connect();
 *
 * On a page of the same origin the session cookie is the identity and the `csrftoken` cookie is sent along as
 * `xrftoken`; elsewhere give `{ url, token }`. The link comes back by itself after any break that can heal; it then
 * asks for what it missed from the position that it had reached, and each event is heard once. `onreconnect` is called when the
 * subscription stands again and tells whether nothing is missing (`recovered`); where something is, because it is too long ago or
 * the server speaks version 1 alone, it is the place to fetch the state anew.
 *
 * (Django's static files rewrite module specifiers by regular expression, in comments too: keep them out of here.)
 *
 * @module carillon
 */

/**
 * @typedef {"idle" | "connecting" | "connected" | "reconnecting" | "refused" | "closed"} State
 *
 * @typedef {object} LinkState
 * @property {State} state
 * @property {number} attempt   how many attempts have failed since the link last stood for 5 s; 0 while it stands
 * @property {?number} retryAt  milliseconds since 1970 of the next attempt, while `reconnecting` waits for it
 * @property {string} reason    why it is so, in words; empty when there is nothing to say
 * @property {?number} code     the close code that led here
 * @property {?number} user     the user's id, while connected
 *
 * @typedef {Object<string, Array<string | number>>} Groups  family to keys: `{jobs: ["status_changed"], job_events: [42]}`
 *
 * @typedef {object} Reply  the server's answer to a subscription
 * @property {string[]} current
 * @property {string[]} left
 * @property {string[]} joined
 * @property {string[]} errors  what was denied while the rest went ahead
 *
 * @typedef {object} Options
 * @property {string} [url]           default: `/websocket/` of the page's own host
 * @property {string} [token]         an API token, sent in the URL; without it the session cookie is the identity
 * @property {string | (() => string)} [xrftoken]  default: the cookie `csrftoken`
 * @property {number} [base]          back-off: the first wait is at most twice this, in ms
 * @property {number} [cap]           back-off: no wait is longer, in ms
 * @property {number} [openWithin]    ms for handshake and acceptance together
 * @property {number} [replyWithin]   ms for the answer to a subscription or a probe
 * @property {number} [probeAfter]    ms of silence after which the link is probed
 * @property {typeof WebSocket} [WebSocket]
 * @property {() => number} [random]  in [0, 1)
 * @property {EventTarget} [network]  fires `online` and `offline`; default: the window
 */

const DEFAULTS = { base: 500, cap: 30_000, openWithin: 10_000, replyWithin: 10_000, probeAfter: 25_000 };
const STEADY = 5000; // ms after which a link counts as good, and the next loss starts with short waits again
const OPEN = 1;
const VERSION_2 = "carillon.v2";

/** Close codes after which coming back by itself would only repeat the refusal. */
const REFUSALS = new Map([
  [4401, "not logged in, or the login has ended"],
  [4403, "this page's origin is not allowed by the server"],
  [1008, "the server closed the link: its policy was broken"],
  [1009, "the server closed the link: a message was too big"],
]);

const BREAKS = new Map([
  [1000, "the server said goodbye"],
  [1001, "the server is going away"],
  [1005, "the server closed the link"],
  [1006, "the connection was lost"],
  [1011, "the server had an error"],
  [1012, "the server is restarting"],
  [1013, "the server is busy"],
  [4408, "this page read too slowly"],
]);

/**
 * How long to wait before an attempt: full jitter, so that a thousand pages cut off together do not come back together.
 *
 * @param {number} attempt  1 for the first
 * @returns {number} ms in [0, min(cap, base * 2 ** attempt))
 */
export function backoff(attempt, { base = DEFAULTS.base, cap = DEFAULTS.cap, random = Math.random } = {}) {
  const ceiling = Math.min(cap, base * 2 ** Math.min(Math.max(attempt, 1), 30));
  return Math.floor(random() * ceiling);
}

/**
 * What a closed socket means.
 *
 * @param {number} code  of the close
 * @returns {{retry: boolean, reason: string}}
 */
export function verdict(code) {
  if (REFUSALS.has(code)) return { retry: false, reason: REFUSALS.get(code) };
  return { retry: true, reason: BREAKS.get(code) ?? `the server closed the link (code ${code})` };
}

/**
 * What a frame of the server says.
 *
 * @param {string} text
 * @returns {{kind: "accepted", user: number, position: ?string} | {kind: "refused", reason: string} | {kind: "event", family: string, event: object, group: ?string, position: ?string}
 *   | {kind: "recovery", recovered: boolean, position: string, reason: string} | {kind: "progress", position: string}
 *   | {kind: "restart", after: number} | {kind: "refreshed"}
 *   | {kind: "groups", current: string[], left: string[], joined: string[], asked: boolean} | {kind: "error", error: string} | {kind: "unknown"}}
 */
export function classify(text) {
  let frame;
  try {
    frame = JSON.parse(text);
  } catch {
    return { kind: "unknown" };
  }
  if (frame === null || typeof frame !== "object" || Array.isArray(frame)) return { kind: "unknown" };
  if (frame.accept === true) return { kind: "accepted", user: frame.user, position: frame.position ?? null };
  if (frame.accept === false) return { kind: "refused", reason: frame.error || "" };
  if (Array.isArray(frame.groups_current)) {
    const { groups_current: current, groups_left: left = [], groups_joined: joined = [], asked = true } = frame;
    return { kind: "groups", current, left, joined, asked };
  }
  if (typeof frame.position === "string") {
    const { position, group, event } = frame;
    if ("recovered" in frame) return { kind: "recovery", recovered: frame.recovered === true, position, reason: frame.reason ?? "" };
    if (event === undefined) return { kind: "progress", position };
    if (typeof group !== "string" || event === null || typeof event !== "object") return { kind: "unknown" };
    return { kind: "event", family: event.group_name ?? group.split("-", 1)[0], event, group, position };
  }
  if (typeof frame.reconnect_after === "number") return { kind: "restart", after: frame.reconnect_after };
  if (frame.refreshed === true) return { kind: "refreshed" };
  if (typeof frame.group_name === "string") return { kind: "event", family: frame.group_name, event: frame, group: null, position: null };
  if (typeof frame.error === "string") return { kind: "error", error: frame.error };
  return { kind: "unknown" };
}

/** Whether an error means that the whole subscription was rejected (no other answer follows). */
export function rejectsSubscription(error) {
  return error === "access denied to channel" || error.startsWith("invalid message");
}

/** Which of two positions lies before the other; of two logs nobody knows, and the first one stays. */
function earlier(own, since) {
  if (own === null) return since;
  const [ownEpoch, number] = own.split(":");
  const [epoch, other] = since.split(":");
  return ownEpoch === epoch && Number(number) >= Number(other) ? since : own;
}

/** What a client of version 2 remembers, so that each event is heard once: where to ask again from, and how far each group was heard. */
export class Memory {
  constructor() {
    /** @type {?string} */
    this.since = null;
    this.replaying = false;
    this._groups = new Set();
    this._heard = new Map();
    this._epoch = "";
  }

  copy() {
    return Object.assign(new Memory(), this, { _heard: new Map(this._heard) });
  }

  /** The server says where the stream is; it counts only while no position is known. */
  welcome(position) {
    this.since ??= position;
  }

  /** A subscription was sent with this `since`: until the answer is whole, this is where to ask again from. */
  asked(since) {
    this.since = since;
    this.replaying = true;
  }

  /** Is the event one that was not heard before? */
  isNew(group, position) {
    const [epoch, digits] = position.split(":");
    const number = Number(digits);
    if (epoch !== this._epoch) {
      this._epoch = epoch;
      this._heard.clear();
    }
    if (number <= (this._heard.get(group) ?? -1)) return false;
    this._heard.set(group, number);
    if (!this.replaying) this.since = position;
    return true;
  }

  /** Everything up to here was heard, or is known to be lost. */
  settled(position) {
    this.since = position;
    this.replaying = false;
  }

  progress(position) {
    if (!this.replaying) this.since = position;
  }

  /**
   * These groups are asked for from now on, those of them that are new from `since` on. Others are forgotten.
   *
   * @param {Groups} groups
   * @param {?string} [since]
   */
  subscribed(groups, since) {
    const names = new Set(Object.entries(groups).flatMap(([family, keys]) => Array.from(keys ?? [], (key) => `${family}-${key}`)));
    const fresh = [...names].filter((group) => !this._groups.has(group));
    this._groups = names;
    for (const group of [...this._heard.keys()]) if (!names.has(group)) this._heard.delete(group);
    if (!since) return;
    this.since = earlier(this.since, since);
    const [epoch, number] = since.split(":");
    if (this.since !== since && this.since.split(":")[0] === epoch) {
      // The groups of before are to be asked for from where they are, which is earlier. Of the new ones what comes from there on
      // is older than what their page has.
      if (epoch !== this._epoch) {
        this._epoch = epoch;
        this._heard.clear();
      }
      for (const group of fresh) this._heard.set(group, Number(number));
    } // Else what we know is of another log: the server will say so, and that not everything can be sent.
    this.replaying = true;
  }
}

/**
 * The state of a link in plain words.
 *
 * @param {LinkState} link
 * @param {number} [now]  ms since 1970
 * @returns {string}
 */
export function describe(link, now = Date.now()) {
  switch (link.state) {
    case "connecting":
      return "Connecting";
    case "connected":
      return "Connected";
    case "reconnecting": {
      const seconds = link.retryAt === null ? 0 : Math.ceil((link.retryAt - now) / 1000);
      return `Reconnecting ${seconds > 0 ? `in ${seconds} s` : "now"} (attempt ${link.attempt})`;
    }
    case "refused":
      return `Refused: ${link.reason}`;
    case "closed":
      return "Closed";
    default:
      return "Not connected";
  }
}

/**
 * @param {string} name
 * @param {string} [cookies]
 * @returns {string} the cookie's value, or ""
 */
export function cookie(name, cookies = globalThis.document?.cookie ?? "") {
  for (const part of cookies.split(";")) {
    const [key, ...value] = part.trim().split("=");
    if (key !== name) continue;
    const text = value.join("=").replace(/^"(.*)"$/, "$1");
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // somebody else's: a bare % in it
    }
  }
  return "";
}

function ownAddress() {
  const { protocol, host } = globalThis.location;
  return `${protocol === "https:" ? "wss" : "ws"}://${host}/websocket/`;
}

export class Carillon {
  /** @param {Options} [options] */
  constructor(options = {}) {
    this.options = { ...DEFAULTS, ...options };
    /** @type {LinkState} */
    this.link = { state: "idle", attempt: 0, retryAt: null, reason: "", code: null, user: null };
    /**
     * Called after every reconnect, once the subscription stands again and what could be recovered has been heard; also when a
     * link that stands lost something. `events`: how many came that had been missed. @type {?((how: {recovered: boolean, reason: string, events: number}) => void | Promise<void>)}
     */
    this.onreconnect = null;
    this._memory = new Memory();
    this._version = 1;
    this._resuming = null; // set after a reconnect, until the server says whether everything was recovered
    this._replayed = 0; // events heard while resuming
    this._restart = null; // ms that a server about to restart asked to wait
    this._handlers = new Map();
    this._groups = null; // as the server knows them, or is to hear first
    this._before = null; // what holds where the server refuses what the next link begins with: {groups, memory}
    this._waiting = []; // one entry per subscription sent and not yet answered: {kind, groups, since, resolve, reject, errors}
    this._socket = null;
    this._admitted = false; // has the server let this socket in?
    this._stood = false; // has the link ever stood? then the next time is a reconnect
    this._since = 0; // when it stood last
    this._attempt = 0; // which attempt this socket is
    this._timers = { open: 0, retry: 0, probe: 0, reply: 0 };
    this._network = options.network ?? (typeof globalThis.addEventListener === "function" ? globalThis : null);
    this._onOnline = () => this._hurry();
    this._onOffline = () => this._probe();
    this._onVisible = () => globalThis.document?.visibilityState === "visible" && this._hurry();
  }

  /**
   * Listen. `name` is a family ("jobs", "job_events" …), "*" for every event, "state", "subscribed" or "error".
   *
   * @param {string} name
   * @param {(value: any) => void} handler
   * @returns {() => void} stops listening
   */
  on(name, handler) {
    const handlers = this._handlers.get(name) ?? new Set();
    this._handlers.set(name, handlers.add(handler));
    return () => handlers.delete(handler);
  }

  /**
   * Open the link, or open it again after a refusal; while it is `reconnecting`, try now.
   *
   * @param {{since?: ?string}} [from]  a position, such as the header `X-Carillon-Position` of the answer that showed the state: the
   *   first subscription begins there, and nothing falls between
   */
  connect({ since } = {}) {
    if (since) this._welcome(since);
    if (["connecting", "connected"].includes(this.link.state)) return;
    if (this.link.state === "reconnecting") {
      this.retry();
      return;
    }
    this._network?.addEventListener("online", this._onOnline);
    this._network?.addEventListener("offline", this._onOffline);
    globalThis.document?.addEventListener("visibilitychange", this._onVisible);
    this._open(0);
  }

  /** Close it for good. */
  close() {
    this._network?.removeEventListener("online", this._onOnline);
    this._network?.removeEventListener("offline", this._onOffline);
    globalThis.document?.removeEventListener("visibilitychange", this._onVisible);
    this._drop("closed", 1000);
    this._stood = false;
    this._become({ state: "closed", attempt: 0, retryAt: null, reason: "", code: null, user: null });
  }

  /** While `reconnecting`: do not wait for the back-off, try now. */
  retry() {
    if (this.link.state === "reconnecting" && this.link.retryAt !== null) this._open(this.link.attempt);
  }

  /**
   * Everything up to here has been heard: where another client may go on. null with a server of version 1.
   *
   * @returns {?string}
   */
  get position() {
    if (this._version !== 2) return null;
    return this._waiting.reduce((at, { since }) => (since ? earlier(at, since) : at), this._memory.since);
  }

  /**
   * Go on with another token of the same user, without a new connection.
   *
   * @param {string} token
   */
  refresh(token) {
    this.options.token = token;
    if (this._admitted && this._version === 2) this._socket.send(JSON.stringify({ refresh: token }));
  }

  /**
   * Replace the whole subscription; it is remembered and made again after every reconnect.
   *
   * @param {Groups} groups
   * @param {{since?: string}} [from]  a position, such as the header `X-Carillon-Position` of the answer that showed the state:
   *   groups that are new begin there, and nothing falls between
   * @returns {Promise<?Reply>} null while the link is not up (it is made when it is); rejects when the server rejects it,
   *   which leaves the subscription as it was, or the link breaks before it answers: then the next one begins with it
   */
  subscribe(groups, { since } = {}) {
    if (this._admitted) return this._send(groups, since);
    this._intend(groups, since);
    return Promise.resolve(null);
  }

  _take(groups, since) {
    this._groups = groups;
    this._memory.subscribed(groups, since);
  }

  /** Without a link: the next one begins with it. */
  _intend(groups, since) {
    this._before ??= { groups: this._groups, memory: this._memory.copy() };
    this._take(groups, since);
  }

  _welcome(position) {
    this._memory.welcome(position);
    this._before?.memory.welcome(position);
  }

  _emit(name, value) {
    for (const handler of this._handlers.get(name) ?? []) {
      try {
        handler(value);
      } catch (error) {
        // One listener's fault must not cost the others their event.
        globalThis.reportError ? globalThis.reportError(error) : console.error(error);
      }
    }
  }

  /** @returns {boolean} whether it is so still: a listener may have closed the link, or more */
  _become(change) {
    const link = { ...this.link, ...change };
    this.link = link;
    this._emit("state", link);
    return this.link === link;
  }

  _open(attempt) {
    clearTimeout(this._timers.retry);
    this._attempt = attempt;
    this._restart = null;
    if (!this._become({ state: attempt ? "reconnecting" : "connecting", attempt, retryAt: null })) return;
    const { token, xrftoken } = this.options;
    this._offered = token; // see `refresh`
    const url = new URL(this.options.url ?? ownAddress());
    if (token) url.searchParams.set("token", token);
    let socket;
    try {
      // The server compares with the cookie of the handshake: take it now, a login elsewhere may change it later.
      this._xrftoken = (typeof xrftoken === "function" ? xrftoken() : xrftoken) ?? cookie("csrftoken");
      socket = new (this.options.WebSocket ?? globalThis.WebSocket)(url.href, [VERSION_2]);
    } catch (error) {
      this._become({ state: "refused", reason: String(error.message ?? error), code: null });
      return;
    }
    this._socket = socket;
    this._refusal = "";
    socket.onmessage = ({ data }) => this._receive(data);
    socket.onclose = ({ code }) => this._closed(code);
    this._timers.open = setTimeout(() => this._lost("no answer to the handshake"), this.options.openWithin);
  }

  _receive(data) {
    this._rest();
    this._await();
    const frame = classify(data);
    switch (frame.kind) {
      case "accepted":
        return this._accepted(frame.user, frame.position);
      case "refused":
        this._refusal = frame.reason; // the close that follows has the code
        return undefined;
      case "groups":
        return this._answered(frame);
      case "error":
        return this._failed(frame.error);
      case "recovery":
        return this._recovered(frame);
      case "progress":
        this._memory.progress(frame.position);
        return undefined;
      case "restart":
        this._restart = frame.after;
        return undefined;
      case "event":
        if (frame.position !== null && !this._memory.isNew(frame.group, frame.position)) return undefined;
        if (this._resuming) this._replayed += 1;
        return this._heard(frame);
      default:
        return undefined;
    }
  }

  _heard({ family, event }) {
    const socket = this._socket;
    this._emit(family, event);
    if (socket === this._socket) this._emit("*", event); // else a listener has closed it
  }

  /** Let in. The link stands when the subscription does: until then nothing would arrive. */
  _accepted(user, position) {
    clearTimeout(this._timers.open);
    this._admitted = true;
    const socket = this._socket;
    this._version = socket.protocol === VERSION_2 && position !== null ? 2 : 1;
    if (this._version === 2) this._welcome(position);
    if (this.options.token !== this._offered) this.refresh(this.options.token);
    const since = this._version === 2 && this._groups ? this._memory.since : null;
    if (since) this._memory.asked(since);
    this._resuming = since && this._stood;
    this._replayed = 0;
    const stands = () => {
      if (socket !== this._socket) return undefined;
      const again = this._stood;
      this._stood = true;
      this._since = Date.now();
      const still = this._become({ state: "connected", attempt: 0, retryAt: null, reason: "", code: null, user });
      // With a `since` the server tells, when it is done, whether everything was recovered.
      if (still && again && !since) return this.onreconnect?.({ recovered: false, reason: "version", events: 0 });
      return undefined;
    };
    // Rejected, the link still stands, with nothing subscribed: "error" told why. Broken, it does not: "state" told.
    this._send(this._groups ?? {}, since, "greeting").then(stands, stands);
  }

  /** What was missed has been heard, or cannot be. */
  _recovered({ recovered, position, reason }) {
    // Not lost, only not to be had now: the same position is asked for again.
    if (!recovered && ["timeout", "unavailable"].includes(reason)) return this._lost("what was missed cannot be sent yet");
    this._memory.settled(position);
    const resuming = this._resuming;
    this._resuming = null;
    if (resuming || !recovered) this.onreconnect?.({ recovered, reason, events: this._replayed });
    return undefined;
  }

  /** @param {"subscription" | "greeting" | "probe"} [kind]  only the first changes what is subscribed */
  _send(groups, since = null, kind = "subscription") {
    return new Promise((resolve, reject) => {
      const text = JSON.stringify({ groups, xrftoken: this._xrftoken || null, ...(since && this._version === 2 ? { since } : {}) });
      this._waiting.push({ kind, groups, since, resolve, reject, errors: [] });
      this._await();
      this._socket.send(text);
    });
  }

  _answered({ current, left, joined, asked }) {
    if (!asked) return this._emit("subscribed", { current, left, joined, errors: [] }); // a right was lost
    const waiting = this._waiting.shift();
    this._await();
    if (waiting?.kind === "subscription") this._take(waiting.groups, waiting.since);
    if (waiting) this._before = null;
    const reply = { current, left, joined, errors: waiting?.errors ?? [] };
    waiting?.resolve(reply);
    if (waiting?.kind !== "probe") this._emit("subscribed", reply);
    return undefined;
  }

  _failed(error) {
    if (rejectsSubscription(error)) {
      const waiting = this._waiting.shift();
      this._await();
      if (waiting?.kind === "greeting" && this._before) {
        const { groups, memory } = this._before;
        this._memory = memory;
        if (groups) {
          this._groups = groups;
          this._before = null;
          this._lost(error); // what stood before is to be heard: the next link begins with it
        } else {
          this._before.memory = memory.copy(); // the next link asks for it again
          memory.subscribed(this._groups, null);
        }
      } else if (waiting?.kind === "greeting" && this._stood) {
        this._lost(error); // it stood before: what is missed meanwhile is not to be passed over
      }
      waiting?.reject(new Error(error));
    } else {
      this._waiting[0]?.errors.push(error);
    }
    this._emit("error", error);
  }

  /** A deadline stands while any answer is due. It is one of silence: an answer may lie behind much that was sent before it. */
  _await() {
    clearTimeout(this._timers.reply);
    if (this._waiting.length === 0) return;
    this._timers.reply = setTimeout(() => this._lost("the server fell silent"), this.options.replyWithin);
  }

  /** Something was heard: the next probe is due after a whole silence. */
  _rest() {
    clearTimeout(this._timers.probe);
    this._timers.probe = setTimeout(() => this._probe(), this.options.probeAfter);
  }

  /**
   * Is anyone there? A page cannot see the pings of the protocol, and a cut cable closes nothing. The same subscription
   * sent again changes nothing and must be answered.
   */
  _probe() {
    if (this.link.state !== "connected" || this._waiting.length > 0) return;
    this._send(this._groups ?? {}, null, "probe").catch(() => undefined);
  }

  /** The network is back, or the page is looked at again. */
  _hurry() {
    this.retry();
    this._probe();
  }

  _lost(reason) {
    this._drop(reason);
    this._again(reason, null);
  }

  _closed(code) {
    const refusal = this._refusal;
    const { retry, reason } = verdict(code);
    this._drop(reason);
    if (retry) {
      this._again(reason, code);
    } else {
      this._become({ state: "refused", attempt: 0, retryAt: null, reason: refusal || reason, code, user: null });
    }
  }

  _again(reason, code) {
    // A server that lets us in and throws us out is not asked once a second for ever.
    const steady = this.link.state === "connected" && Date.now() - this._since >= STEADY;
    const attempt = steady ? 1 : this._attempt + 1;
    const { base, cap, random } = this.options;
    const wait = this._restart ?? backoff(attempt, { base, cap, random });
    this._restart = null;
    this._timers.retry = setTimeout(() => this._open(attempt), wait);
    this._become({ state: "reconnecting", attempt, retryAt: Date.now() + wait, reason, code, user: null });
  }

  _drop(reason, code) {
    for (const timer of Object.values(this._timers)) clearTimeout(timer);
    const socket = this._socket;
    this._socket = null;
    this._admitted = false;
    if (socket) {
      socket.onmessage = null;
      socket.onclose = null;
      if (socket.readyState <= OPEN) socket.close(code);
    }
    for (const { kind, groups, since, reject } of this._waiting.splice(0)) {
      if (kind === "subscription") this._intend(groups, since);
      reject(new Error(reason));
    }
  }
}
