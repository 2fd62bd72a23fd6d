// Of the report's script, first: what is shown, values as people read them, tables, ticks.

const data = JSON.parse(document.getElementById("report-data").textContent);
const LEFT = 58, RIGHT = 26, TOP = 22, BOTTOM = 30, HEADROOM = 0.06;
const PAPER = { wide: 680, narrow: 335 }; // pixels of A4 between its margins
const AXES = ["step", "tokens", "seconds"];
const state = { axis: "step", range: null, at: null, hiddenRuns: new Set(), paper: false };
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const escaped = (value) => String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const numeric = (value) => (typeof value === "number" ? value : NaN); // "nan", "inf": gaps

// -- values as people read them ----------------------------------------------------------------

const trim = (value, digits) => String(Number(value.toPrecision(digits)));

function short(value) {
  for (const [factor, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= factor * 0.9995) return trim(value / factor, 3) + suffix;
  }
  return trim(value, 3);
}

function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${trim(seconds, 3)}s`;
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (value) => String(value).padStart(2, "0");
  if (hours >= 48) return `${trim(seconds / 86400, 3)}d`;
  if (hours) return `${hours}h${two(minutes)}`;
  return rest ? `${minutes}m${two(rest)}s` : `${minutes}m`;
}

function written(value, unit, digits) {
  if (!Number.isFinite(value)) return "–";
  if (unit === "bytes") return `${trim(value / 1e9, digits)} GB`;
  if (unit === "share") return `${trim(100 * value, digits)}%`;
  if (unit === "rate") return value >= 1e4 ? `${short(value)}/s` : `${Math.round(value)}/s`;
  return trim(value, digits);
}

function exactly(value, unit) {
  if (unit === "rate") return Number.isFinite(value) ? `${value.toLocaleString("en")}/s` : "–";
  return written(value, unit, 6);
}

function position(value, axis) {
  if (axis === "seconds") return duration(value);
  return axis === "tokens" ? short(value) : Math.round(value).toLocaleString("en");
}

// -- tables --------------------------------------------------------------------------------------

const columns = (run, table) => data.runs[run][table].columns;
const cache = new Map();

function column(run, table, name) {
  const key = JSON.stringify([run, table, name]);
  if (!cache.has(key)) cache.set(key, Float64Array.from(columns(run, table)[name], numeric));
  return cache.get(key);
}

// First index whose value is not below `wanted`; positions only grow.
function lowerBound(values, wanted) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low;
}

function nearest(xs, wanted) {
  const next = lowerBound(xs, wanted);
  if (next === 0) return 0;
  if (next === xs.length) return xs.length - 1;
  return wanted - xs[next - 1] <= xs[next] - wanted ? next - 1 : next;
}

function beginning(run, axis) {
  const place = AXES.indexOf(axis);
  const stages = data.runs[run].stages;
  const first = [stages.length ? stages[0].start[place] : NaN, column(run, "steps", axis)[0],
    column(run, "validation", axis)[0]];
  return Math.min(...first.filter(Number.isFinite));
}

function wholeRange(axis) {
  let low = Infinity, high = -Infinity;
  data.runs.forEach((_, run) => {
    const xs = column(run, "steps", axis);
    if (!xs.length || state.hiddenRuns.has(run)) return;
    low = Math.min(low, beginning(run, axis));
    high = Math.max(high, xs[xs.length - 1]);
  });
  if (!(high >= low)) return [0, 1];
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}

// What is shown stays in view when the axis changes, as the first visible run has it.
function converted(value, from, to) {
  const run = Math.max(0, data.runs.findIndex((r, i) => !state.hiddenRuns.has(i) && r.steps.total));
  const xs = [beginning(run, from), ...column(run, "steps", from)];
  const ys = [beginning(run, to), ...column(run, "steps", to)];
  const next = Math.min(Math.max(1, lowerBound(xs, value)), xs.length - 1);
  const width = xs[next] - xs[next - 1];
  const share = width > 0 ? (value - xs[next - 1]) / width : 0;
  return ys[next - 1] + share * (ys[next] - ys[next - 1]);
}

const range = () => state.range || wholeRange(state.axis);

function zoomTo(low, high) {
  const [first, last] = wholeRange(state.axis);
  low = Math.max(first, low);
  high = Math.min(last, high);
  if (!(high - low > (last - first) * 1e-6)) return;
  state.range = low <= first && high >= last ? null : [low, high];
  drawAll();
}

function reset() {
  state.range = null;
  drawAll();
}

// -- ticks ---------------------------------------------------------------------------------------

const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200];

function ticks(low, high, wanted, axis) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = power * [1, 2, 5, 10].find((m) => power * m >= rough * 0.999);
  if (axis === "seconds" && rough > 1) {
    step = SECONDS.find((s) => s >= rough) || 86400 * Math.ceil(rough / 86400);
  }
  if (axis === "step") step = Math.max(1, step);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++) {
    found.push(i === 0 ? 0 : Number((i * step).toPrecision(12)));
  }
  return found;
}

function logTicks(low, high, wanted) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high, wanted).filter((v) => v > 0);
  const found = [];
  const parts = decades < 2 ? [1, 2, 3, 5] : decades < 4 ? [1, 3] : [1];
  const each = Math.max(1, Math.ceil(decades / 8));
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
    if (parts.length === 1 && e % each) continue;
    for (const part of parts) {
      const value = Number((part * 10 ** e).toPrecision(3));
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}
