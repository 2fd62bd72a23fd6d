// Of the report's script, second: one figure, which takes over the SVG that stands in the page.

class Plot {
  constructor(element, figure) {
    this.element = element;
    this.figure = figure;
    this.svg = $(".chart", element);
    this.log = false;
    this.hidden = new Set();
    this.outputs = $$(".legend output", element);
    this.head = $$("title, desc", this.svg).map((node) => node.outerHTML).join("");
    this.listen();
  }

  curves() {
    return this.figure.curves.filter((c, i) => !this.hidden.has(i) && !state.hiddenRuns.has(c.run));
  }

  xs(curve) { return column(curve.run, curve.table, state.axis); }

  taken(curve) { // values with gaps at skipped steps
    const key = JSON.stringify([curve.run, curve.table, curve.column, "taken"]);
    if (!cache.has(key)) {
      const values = column(curve.run, curve.table, curve.column).slice();
      const skipped = (curve.smoothed && columns(curve.run, curve.table).skipped) || [];
      skipped.forEach((kind, row) => { if (kind !== null) values[row] = NaN; });
      cache.set(key, values);
    }
    return cache.get(key);
  }

  shown(xs) { // rows in view, with one neighbour on each side
    const [low, high] = range();
    return [Math.max(0, lowerBound(xs, low) - 1), Math.min(xs.length, lowerBound(xs, high) + 2)];
  }

  heights() {
    let low = Infinity, high = -Infinity;
    const add = (value) => {
      if (!Number.isFinite(value) || (this.log && value <= 0)) return;
      low = Math.min(low, value);
      high = Math.max(high, value);
    };
    const [left, right] = range();
    for (const curve of this.curves()) {
      const xs = this.xs(curve), ys = this.taken(curve);
      const [from, to] = this.shown(xs);
      const ends = (curve.band || []).map((name) => column(curve.run, curve.table, name));
      for (let i = from; i < to; i++) {
        if (xs[i] < left || xs[i] > right) continue;
        add(ys[i]);
        ends.forEach((values) => add(values[i]));
      }
    }
    if (!state.range) this.figure.levels.forEach((level) => add(level.value));
    if (!(high >= low)) [low, high] = this.log ? [0.1, 1] : [0, 1];
    if (this.log) {
      const room = (high / low) ** HEADROOM * (high > low ? 1 : 1.5);
      return [low / room, high * room];
    }
    const zero = this.figure.zero && !state.range;
    if (zero) low = Math.min(0, low);
    if (!(high > low)) return [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
    const room = (high - low) * HEADROOM;
    return [zero && low === 0 ? 0 : low - room, high + room];
  }

  measure() {
    const kind = this.figure.wide ? "wide" : "narrow";
    this.width = state.paper ? PAPER[kind] : Math.max(240, Math.round(this.svg.clientWidth || 600));
    const small = state.paper || this.width < 600;
    this.height = this.figure.wide ? (state.paper ? 225 : small ? 255 : 350) : small ? 205 : 250;
  }

  draw() {
    this.measure();
    const [low, high] = this.xRange = range();
    const [bottom, top] = this.yRange = this.heights();
    const inside = [this.width - LEFT - RIGHT, this.height - TOP - BOTTOM];
    const flat = this.log ? Math.log : (v) => v;
    const [b, t] = [flat(bottom), flat(top)];
    this.x = (v) => LEFT + ((v - low) / (high - low)) * inside[0];
    this.back = (px) => low + ((px - LEFT) / inside[0]) * (high - low);
    this.y = (v) => this.height - BOTTOM - ((flat(v) - b) / (t - b)) * inside[1];
    // A nested viewport clips what is zoomed out of view.
    const clip = `x="${LEFT}" y="${TOP - 6}" width="${inside[0]}" height="${inside[1] + 7}"`;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.innerHTML = `${this.head}${this.bands()}${this.axes()}<svg ${clip} viewBox="${LEFT} ` +
      `${TOP - 6} ${inside[0]} ${inside[1] + 7}">${this.levels()}` +
      `${this.curves().map((c) => this.curve(c)).join("")}</svg>${this.marks()}<g class="over"></g>`;
    this.over = $(".over", this.svg);
    this.cross();
  }

  axes() {
    const bottom = this.height - BOTTOM, right = this.width - RIGHT;
    const wanted = Math.floor((this.height - TOP - BOTTOM) / 42);
    const rows = (this.log ? logTicks : ticks)(...this.yRange, wanted).map((value) => {
      const y = this.y(value).toFixed(1);
      return `<path class="grid" d="M${LEFT} ${y}H${right}"/><text class="tick" x="${LEFT - 8}" ` +
        `y="${Number(y) + 4}" text-anchor="end">${written(value, this.figure.unit, 4)}</text>`;
    });
    const cells = ticks(...this.xRange, Math.floor((right - LEFT) / (this.width < 600 ? 62 : 90)), state.axis).map((value) => {
      const x = this.x(value).toFixed(1);
      return `<path class="axis" d="M${x} ${bottom}v5"/><text class="tick" x="${x}" ` +
        `y="${bottom + 19}" text-anchor="middle">${position(value, state.axis)}</text>`;
    });
    return rows.join("") + cells.join("") + `<path class="axis" d="M${LEFT} ${bottom}H${right}"/>`;
  }

  levels() {
    return this.figure.levels.map((level) => {
      const y = this.y(level.value).toFixed(1);
      return `<path class="level" d="M${LEFT} ${y}H${this.width - RIGHT}"/><text class="tick" ` +
        `x="${this.width - RIGHT - 4}" y="${y - 4}" text-anchor="end">${escaped(level.label)}</text>`;
    }).join("");
  }

  visibleRuns() {
    return data.runs.map((run, index) => ({ run, index })).filter(({ index }) =>
      !state.hiddenRuns.has(index) && this.figure.curves.some((c) => c.run === index));
  }

  bands() { // where the visible runs' stages agree; else a mark where each begins (marks)
    const place = AXES.indexOf(state.axis);
    const of = ({ run }) => JSON.stringify(run.stages.map((s) => [s.name, s.start[place], s.end[place]]));
    const runs = this.visibleRuns();
    this.agreed = runs.length > 0 && runs.every((run) => of(run) === of(runs[0]));
    if (!this.agreed) return "";
    const [low, high] = this.xRange;
    return runs[0].run.stages.map((stage, number) => {
      const from = this.x(Math.max(low, stage.start[place])), to = this.x(Math.min(high, stage.end[place]));
      if (!(to > from)) return "";
      const name = to - from > 7 * stage.name.length ? `<text class="stage" x="${(from + to) / 2}" ` +
        `y="${TOP - 7}" text-anchor="middle">${escaped(stage.name)}</text>` : "";
      return `<rect class="band b${number % 2}" x="${from.toFixed(1)}" y="${TOP}" ` +
        `width="${(to - from).toFixed(1)}" height="${this.height - TOP - BOTTOM}"/>${name}`;
    }).join("");
  }

  marks() {
    const place = AXES.indexOf(state.axis), bottom = this.height - BOTTOM, found = [];
    const inView = (at) => at[place] >= this.xRange[0] && at[place] <= this.xRange[1];
    for (const { run, index } of this.visibleRuns()) {
      const whose = data.runs.length > 1 ? `${run.label}: ` : "";
      const colour = data.runs.length > 1 ? `c${index % 7}` : "";
      for (const at of run.resumes.filter(inView)) {
        found.push(`<path class="resume ${colour}" d="M${this.x(at[place]).toFixed(1)} ${TOP}V${bottom}">` +
          `<title>${escaped(whose)}went on from step ${at[0]}</title></path>`);
      }
      for (const at of run.checkpoints.filter(inView)) {
        const x = this.x(at[place]).toFixed(1);
        found.push(`<path class="checkpoint" d="M${x} ${bottom - 6}l3.5 6h-7z">` +
          `<title>${escaped(whose)}checkpoint at step ${at[0]}</title></path>`);
      }
      if (this.agreed) continue;
      for (const stage of run.stages.slice(1).filter((s) => inView(s.start))) {
        found.push(`<path class="line c${index % 7}" d="M${this.x(stage.start[place]).toFixed(1)} ` +
          `${TOP}v9"><title>${escaped(whose)}${escaped(stage.name)} begins</title></path>`);
      }
    }
    return found.join("");
  }

  path(xs, ys, style) {
    const [from, to] = this.shown(xs);
    let d = "", pen = "M";
    for (let i = from; i < to; i++) {
      if (!Number.isFinite(ys[i]) || (this.log && ys[i] <= 0)) { pen = "M"; continue; }
      d += `${pen}${this.x(xs[i]).toFixed(1)} ${this.y(ys[i]).toFixed(1)}`;
      pen = "L";
    }
    return `<path class="line ${style}" d="${d}"/>`;
  }

  band(curve, xs, style) { // the area between two columns, where both are known
    const [low, high] = curve.band.map((name) => column(curve.run, curve.table, name));
    const [from, to] = this.shown(xs), there = [], back = [];
    for (let i = from; i < to; i++) {
      if (!Number.isFinite(low[i] + high[i]) || (this.log && low[i] <= 0)) continue;
      there.push(`${this.x(xs[i]).toFixed(1)} ${this.y(high[i]).toFixed(1)}`);
      back.unshift(`${this.x(xs[i]).toFixed(1)} ${this.y(low[i]).toFixed(1)}`);
    }
    return there.length ? `<path class="interval ${style}" d="M${[...there, ...back].join("L")}Z"/>` : "";
  }

  curve(curve) {
    const xs = this.xs(curve), ys = this.taken(curve), style = `c${curve.colour} d${curve.dash % 4}`;
    const [from, to] = this.shown(xs);
    let found = curve.band ? this.band(curve, xs, style) : "";
    found += this.path(xs, ys, curve.smoothed ? `raw ${style}` : style);
    if (curve.smoothed) found += this.path(xs, column(curve.run, curve.table, curve.smoothed), style);
    if (to - from <= 60) {
      for (let i = from; i < to; i++) {
        if (Number.isFinite(ys[i]) && !(this.log && ys[i] <= 0)) {
          found += `<circle class="dot ${style}" cx="${this.x(xs[i]).toFixed(1)}" ` +
            `cy="${this.y(ys[i]).toFixed(1)}" r="2.5"/>`;
        }
      }
    }
    return found + this.skips(curve, from, to);
  }

  skips(curve, from, to) {
    const { skipped, step } = columns(curve.run, curve.table);
    if (!skipped || !curve.smoothed) return "";
    const xs = this.xs(curve), [bottom, top] = this.yRange;
    const told = columns(curve.run, curve.table)[curve.column];
    let found = "";
    for (let i = from; i < to; i++) {
      if (skipped[i] === null) continue;
      const value = Number.isFinite(numeric(told[i])) ? Math.min(Math.max(told[i], bottom), top) : top;
      const x = this.x(xs[i]).toFixed(1), y = Math.max(TOP + 5, this.y(value)).toFixed(1);
      found += `<path class="skip" d="M${x - 4} ${y - 4}l8 8m0 -8l-8 8"><title>step ${step[i]} skipped ` +
        `(${escaped(skipped[i])}): ${escaped(told[i])}</title></path>`;
    }
    return found;
  }

  // The crosshair: the recorded point of each curve that is nearest to it.
  cross(active = false) {
    const [low, high] = this.xRange;
    const inside = state.at !== null && state.at >= low && state.at <= high;
    const said = [];
    let found = "", where = null;
    this.figure.curves.forEach((curve, index) => {
      const output = this.outputs[index];
      output.textContent = "";
      if (!inside || this.hidden.has(index) || state.hiddenRuns.has(curve.run)) return;
      const xs = this.xs(curve);
      if (!xs.length) return;
      const row = nearest(xs, state.at);
      const told = columns(curve.run, curve.table)[curve.column][row], value = numeric(told);
      const table = columns(curve.run, curve.table);
      const kind = table.skipped && table.skipped[row] ? `, skipped (${table.skipped[row]})` : "";
      output.textContent = typeof told === "string" ? told + kind : exactly(value, this.figure.unit) + kind;
      where = where || AXES.map((axis) => table[axis][row]);
      said.push(`${curve.label} ${output.textContent}`);
      if (Number.isFinite(value) && this.y(value) >= TOP - 6 && this.y(value) <= this.height - BOTTOM) {
        found += `<circle class="dot c${curve.colour}" cx="${this.x(xs[row]).toFixed(1)}" ` +
          `cy="${this.y(value).toFixed(1)}" r="3.5"/>`;
      }
    });
    if (inside) {
      const x = this.x(state.at).toFixed(1);
      found = `<path class="cross" d="M${x} ${TOP}V${this.height - BOTTOM}"/>` + found;
      if (active && where) {
        const words = `step ${position(where[0], "step")} · ${short(where[1])} tokens · ${duration(where[2])}`;
        const half = words.length * 3.1;
        const middle = Math.min(Math.max(x, LEFT + half), this.width - RIGHT - half);
        found += `<text class="now" x="${middle}" y="${TOP + 12}" text-anchor="middle">${words}</text>`;
        this.said = `${words}: ${said.join(", ")}`;
      }
    }
    if (this.drag) {
      const [a, b] = [this.drag.from, this.drag.to].map((v) => this.x(v)).sort((p, q) => p - q);
      found += `<rect class="zoom" x="${a}" y="${TOP}" width="${b - a}" ` +
        `height="${this.height - TOP - BOTTOM}"/>`;
    }
    this.over.innerHTML = found;
  }

  // -- what people do ------------------------------------------------------------------------------

  pointed(event) {
    const box = this.svg.getBoundingClientRect();
    const value = this.back(((event.clientX - box.left) / box.width) * this.width);
    return Math.min(Math.max(value, this.xRange[0]), this.xRange[1]);
  }

  point(at) {
    state.at = at;
    plots.forEach((plot) => plot.cross(plot === this));
  }

  listen() {
    const svg = this.svg;
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("aria-roledescription", "zoomable plot");
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      svg.setPointerCapture(event.pointerId);
      this.drag = { from: this.pointed(event), to: this.pointed(event), x: event.clientX };
    });
    svg.addEventListener("pointermove", (event) => {
      if (this.drag) this.drag.to = this.pointed(event);
      this.point(this.pointed(event));
    });
    svg.addEventListener("pointerup", (event) => {
      const drag = this.drag;
      this.drag = null;
      if (drag && Math.abs(event.clientX - drag.x) > 5) {
        zoomTo(Math.min(drag.from, drag.to), Math.max(drag.from, drag.to));
      }
      this.point(this.pointed(event));
    });
    svg.addEventListener("pointercancel", () => { this.drag = null; this.point(null); });
    svg.addEventListener("pointerleave", (event) => {
      // A finger that was lifted has left, but its owner still reads.
      if (!this.drag && event.pointerType !== "touch") this.point(null);
    });
    svg.addEventListener("dblclick", reset);
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // a plain wheel scrolls the page
      event.preventDefault();
      this.zoomBy(1.003 ** event.deltaY, this.pointed(event));
    }, { passive: false });
    svg.addEventListener("keydown", (event) => this.key(event));
    svg.addEventListener("blur", () => this.point(null));
    $$(".legend button", this.element).forEach((button, index) => button.addEventListener("click", () => {
      if (!this.hidden.delete(index)) this.hidden.add(index);
      button.setAttribute("aria-pressed", String(!this.hidden.has(index)));
      this.draw();
    }));
    const log = $(".log", this.element);
    if (log) log.addEventListener("click", () => {
      this.log = !this.log;
      log.setAttribute("aria-pressed", String(this.log));
      this.draw();
    });
    $(".csv", this.element).addEventListener("click", () => save(`${this.figure.key}.csv`, "text/csv", this.csv()));
  }

  zoomBy(factor, at) {
    const [low, high] = range();
    zoomTo(at - (at - low) * factor, at + (high - at) * factor);
  }

  key(event) {
    const [low, high] = range();
    const at = state.at === null ? (low + high) / 2 : state.at;
    const small = (high - low) / (event.shiftKey ? 10 : 100);
    const moves = { ArrowLeft: at - small, ArrowRight: at + small, Home: low, End: high };
    if (event.key in moves) this.point(Math.min(Math.max(moves[event.key], low), high));
    else if (event.key === "+" || event.key === "=") this.zoomBy(0.6, at);
    else if (event.key === "-") this.zoomBy(1 / 0.6, at);
    else if (event.key === "0" || event.key === "Escape") reset();
    else return;
    event.preventDefault();
    if (event.key in moves) spoken.textContent = this.said || "";
  }

  csv() {
    const quoted = (value) => (value === null || value === undefined ? "" :
      /[",\n]/.test(value) ? `"${String(value).replace(/"/g, '""')}"` : value);
    const ends = this.figure.curves.some((curve) => curve.band) ? ["low", "high"] : [];
    const rows = [["run", "curve", "step", "tokens", "seconds", "value", "smoothed", "skipped", ...ends]];
    for (const curve of this.figure.curves) {
      const table = columns(curve.run, curve.table);
      table.step.forEach((step, i) => rows.push([data.runs[curve.run].label, curve.label, step,
        table.tokens[i], table.seconds[i], table[curve.column][i],
        curve.smoothed ? table[curve.smoothed][i] : "", table.skipped ? table.skipped[i] : "",
        ...ends.map((_, end) => (curve.band ? table[curve.band[end]][i] : ""))]));
    }
    return rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  }
}

function save(name, kind, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
