/** Times and words for people. Pure. */

export const ACTIVE = ["new", "pending", "waiting", "running"];

/** Where a job may be filtered to: word, and the states it stands for. */
export const FILTERS = Object.entries({ All: [], Active: ACTIVE, Successful: ["successful"], Failed: ["failed", "error"], Canceled: ["canceled"] })
  .map(([label, states]) => ({ name: label.toLowerCase(), label, states }));

export const isActive = (status) => ACTIVE.includes(status);

export const KINDS = {
  job: "Playbook run",
  ad_hoc_command: "Command",
  project_update: "Project update",
  inventory_update: "Inventory update",
  system_job: "System job",
  workflow_job: "Workflow",
};

export const kindName = (kind) => KINDS[kind] ?? kind;

/**
 * @param {?number} seconds
 * @returns {string} "0.4 s", "12 s", "3 min 07 s", "2 h 05 min"
 */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (value) => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

/**
 * How long a job has run or ran, in seconds.
 *
 * @param {{started: ?string, finished: ?string, elapsed: ?number, status: string}} job
 * @param {number} now  ms since 1970
 * @returns {?number}
 */
export function elapsed(job, now) {
  if (!job.started) return null;
  if (job.finished) return (Date.parse(job.finished) - Date.parse(job.started)) / 1000;
  return isActive(job.status) ? Math.max(0, (now - Date.parse(job.started)) / 1000) : (job.elapsed ?? null);
}

const STEPS = Object.entries({ day: 86_400, hour: 3600, minute: 60 });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "long" });

/**
 * @param {string} iso
 * @param {number} now  ms since 1970
 * @returns {string} "just now", "3 minutes ago", "in 2 hours"
 */
export function ago(iso, now) {
  const seconds = (Date.parse(iso) - now) / 1000;
  for (const [unit, size] of STEPS) {
    // What is to come is rounded, what is over was complete: "in 5 hours" at 4:59, "1 hour ago" at 1:59.
    if (Math.abs(seconds) >= size) return relative.format(seconds > 0 ? Math.round(seconds / size) : Math.trunc(seconds / size), unit);
  }
  return seconds > 10 ? "in less than a minute" : "just now";
}

/** @param {string} day  "2026-11-01" @returns {?Date} when it begins, in the reader's own time; null: it is no day */
export function midnight(day) {
  const date = new Date(`${day}T00:00`);
  return Number.isNaN(date.getTime()) ? null : date;
}

/** @returns {string} "1 Nov 2026" */
export const dated = (day) => midnight(day).toLocaleDateString("en-GB", { dateStyle: "medium" });

/** @returns {string} "23 Nov 2025, 14:03:09" in the reader's own time */
export function when(iso) {
  return new Date(iso).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

// In this order: each of them says the names of those behind it, too.
const BROWSERS = { "Edg/": "Edge", "OPR/": "Opera", "Chrome/": "Chrome", "Firefox/": "Firefox", "Safari/": "Safari" };

/** @param {string} client  its User-Agent @returns {string} a browser's name, or what a program calls itself */
export function program(client) {
  const known = Object.keys(BROWSERS).find((mark) => client.includes(mark));
  return known && client.startsWith("Mozilla/") ? BROWSERS[known] : client.slice(0, 60) || "–";
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
