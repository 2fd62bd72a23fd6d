// Of the report's script, last: the page, its buttons, paper.

document.documentElement.classList.add("js");
$$("[hidden]").forEach((element) => { element.hidden = false; });
const spoken = document.createElement("div");
spoken.className = "spoken";
spoken.setAttribute("aria-live", "polite");
document.body.append(spoken);
const plots = data.figures.map((figure) => new Plot($(`[data-figure="${figure.key}"]`), figure));

function drawAll() {
  plots.forEach((plot) => plot.draw());
  const button = $("#reset");
  if (button) button.disabled = state.range === null;
}

$$("[data-axis]").forEach((button) => button.addEventListener("click", () => {
  const [from, to] = [state.axis, button.dataset.axis];
  if (state.range) state.range = state.range.map((value) => converted(value, from, to));
  state.axis = to;
  state.at = null;
  $$("[data-axis]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
  drawAll();
}));
$$("[data-run]").forEach((button) => button.addEventListener("click", () => {
  const run = Number(button.dataset.run);
  if (!state.hiddenRuns.delete(run)) state.hiddenRuns.add(run);
  button.setAttribute("aria-pressed", String(!state.hiddenRuns.has(run)));
  drawAll();
}));
if ($("#reset")) $("#reset").addEventListener("click", reset);
$("#json").addEventListener("click", () => save("report.json", "application/json", JSON.stringify(data, null, 1)));

const THEMES = ["auto", "light", "dark"];
$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme || "auto") + 1) % THEMES.length];
  if (next === "auto") delete root.dataset.theme; else root.dataset.theme = next;
  $("#theme-name").textContent = next;
});

$$(".code").forEach((box) => {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "copy";
  button.addEventListener("click", () => {
    navigator.clipboard.writeText($("code", box).textContent).then(
      () => { button.textContent = "copied"; },
      () => { getSelection().selectAllChildren($("code", box)); button.textContent = "selected"; });
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  });
  box.append(button);
});

let closed = [];
addEventListener("beforeprint", () => {
  closed = $$("details:not([open])");
  closed.forEach((element) => { element.open = true; });
  state.paper = true;
  state.at = null;
  drawAll();
});
addEventListener("afterprint", () => {
  closed.forEach((element) => { element.open = false; });
  state.paper = false;
  drawAll();
});
let waiting = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(drawAll);
});
drawAll();
