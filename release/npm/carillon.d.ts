/** The types of carillon.js, which says more of each. */

export type State = "idle" | "connecting" | "connected" | "reconnecting" | "refused" | "closed";

export interface LinkState {
  state: State;
  attempt: number;
  retryAt: number | null;
  reason: string;
  code: number | null;
  user: number | null;
}

/** Family to keys: `{jobs: ["status_changed"], job_events: [42]}`. */
export type Groups = Record<string, Iterable<string | number> | null | undefined>;

export interface Reply {
  current: string[];
  left: string[];
  joined: string[];
  errors: string[];
}

export interface Recovery {
  recovered: boolean;
  reason: string;
  events: number;
}

export interface Options {
  url?: string;
  token?: string;
  xrftoken?: string | (() => string);
  base?: number;
  cap?: number;
  openWithin?: number;
  replyWithin?: number;
  probeAfter?: number;
  WebSocket?: new (url: string, protocols?: string[]) => WebSocket;
  random?: () => number;
  network?: EventTarget;
}

export type Frame =
  | { kind: "accepted"; user: number; position: string | null }
  | { kind: "refused"; reason: string }
  | { kind: "event"; family: string; event: Record<string, any>; group: string | null; position: string | null }
  | { kind: "recovery"; recovered: boolean; position: string; reason: string }
  | { kind: "progress"; position: string }
  | { kind: "restart"; after: number }
  | { kind: "refreshed" }
  | { kind: "groups"; current: string[]; left: string[]; joined: string[] }
  | { kind: "error"; error: string }
  | { kind: "unknown" };

export function backoff(attempt: number, options?: { base?: number; cap?: number; random?: () => number }): number;
export function verdict(code: number): { retry: boolean; reason: string };
export function classify(text: string): Frame;
export function rejectsSubscription(error: string): boolean;
export function describe(link: LinkState, now?: number): string;
export function cookie(name: string, cookies?: string): string;

export class Memory {
  since: string | null;
  replaying: boolean;
  copy(): Memory;
  welcome(position: string | null): void;
  asked(since: string): void;
  isNew(group: string, position: string): boolean;
  settled(position: string): void;
  progress(position: string): void;
  subscribed(groups: Groups, since?: string | null): void;
}

export class Carillon {
  constructor(options?: Options);
  link: LinkState;
  onreconnect: ((how: Recovery) => void | Promise<void>) | null;
  readonly position: string | null;
  on(name: "state", handler: (link: LinkState) => void): () => void;
  on(name: "subscribed", handler: (reply: Reply) => void): () => void;
  on(name: string, handler: (value: any) => void): () => void;
  connect(from?: { since?: string | null }): void;
  close(): void;
  retry(): void;
  refresh(token: string): void;
  subscribe(groups: Groups, from?: { since?: string | null }): Promise<Reply | null>;
}
