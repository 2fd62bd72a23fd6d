// How answers are drawn: what can be set, in plain words, and the request it makes. No DOM.

/**
 * @typedef {object} Control
 * @property {string} key the API's name
 * @property {string} label
 * @property {string} help
 * @property {number | null} usual null: left to the server
 * @property {number} least
 * @property {number} most
 * @property {number} step
 * @property {boolean} [slider]
 */

/** @type {Control[]} */
export const CONTROLS = [
  {
    key: "temperature", label: "Temperature", usual: 0.7, least: 0, most: 2, step: 0.05, slider: true,
    help: "How freely words are chosen. 0 always takes the likeliest; above 1 it gets wild.",
  },
  {
    key: "top_p", label: "Top-p", usual: 0.95, least: 0.01, most: 1, step: 0.01, slider: true,
    help: "Chooses among the likeliest tokens that together have this share. 1 keeps all.",
  },
  {
    key: "top_k", label: "Top-k", usual: 50, least: 0, most: 1000, step: 1,
    help: "Chooses among this many of the likeliest tokens. 0 keeps all.",
  },
  {
    key: "min_p", label: "Min-p", usual: 0, least: 0, most: 1, step: 0.01, slider: true,
    help: "Drops tokens that have less than this share of the likeliest one's probability.",
  },
  {
    key: "max_tokens", label: "Longest answer", usual: null, least: 1, most: 1e6, step: 1,
    help: "In tokens, a token being about three quarters of a word. Empty: as long as there is room.",
  },
  {
    key: "repetition_penalty", label: "Repetition penalty", usual: 1, least: 0.1, most: 2, step: 0.01,
    slider: true,
    help: "Above 1, tokens that have been used become less likely. 1 changes nothing.",
  },
  {
    key: "presence_penalty", label: "Presence penalty", usual: 0, least: -2, most: 2, step: 0.1,
    slider: true,
    help: "Above 0, anything that has been mentioned becomes less likely: more new subjects.",
  },
  {
    key: "frequency_penalty", label: "Frequency penalty", usual: 0, least: -2, most: 2, step: 0.1,
    slider: true,
    help: "Above 0, the more often a token was used, the less likely it becomes.",
  },
  {
    key: "seed", label: "Seed", usual: null, least: 0, most: Number.MAX_SAFE_INTEGER, step: 1,
    help: "The same seed and the same question give the same answer. Empty: another one each time.",
  },
];

/** @typedef {Record<string, number | null> & {stop?: any}} Settings */

export function usualSettings() {
  return { ...Object.fromEntries(CONTROLS.map(({ key, usual }) => [key, usual])), stop: "" };
}

/** What is kept, with anything unknown or out of range as usual. @param {any} kept */
export function settingsFrom(kept) {
  const settings = usualSettings();
  for (const control of CONTROLS) {
    const value = kept?.[control.key];
    if (typeof value === "number" && !problemOf(control, value)) settings[control.key] = value;
  }
  if (typeof kept?.stop === "string") settings.stop = kept.stop;
  return settings;
}

/**
 * What is wrong with a value, in words; "" if nothing is.
 * @param {Control} control @param {number | null} value
 */
export function problemOf(control, value) {
  if (value === null) return control.usual === null ? "" : `${control.label} needs a number.`;
  const within = value >= control.least && value <= control.most;
  const whole = control.step < 1 || Number.isInteger(value);
  if (within && whole) return "";
  const kind = control.step < 1 ? "a number" : "a whole number";
  const most = control.most > 1e6 ? "" : ` to ${control.most.toLocaleString("en")}`;
  return `Give ${kind} from ${control.least}${most}.`;
}

/** The strings at which an answer ends: a line each, with \n for a line end. @param {string} text */
export function stopStrings(text) {
  const unescaped = (line) => line.replace(/\\([nt\\])/g, (_, sign) => ({ n: "\n", t: "\t", "\\": "\\" })[sign]);
  return text.split("\n").filter((line) => line !== "").map(unescaped);
}

/**
 * The body of a request for an answer.
 * @param {{model: string, messages: object[], settings: any}} of
 */
export function requestBody({ model, messages, settings }) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const { key } of CONTROLS) {
    if (settings[key] !== null) body[key] = settings[key];
  }
  const stop = stopStrings(settings.stop);
  if (stop.length) body.stop = stop;
  return body;
}
