// The panel of settings: system prompt, sampling, keys.

import { h, iconButton } from "./dom.js";
import { CONTROLS, problemOf, usualSettings } from "./settings.js";

const KEYS = [
  ["Enter", "send"], ["Shift Enter", "new line"], ["Esc", "stop the answer"], ["Ctrl K", "new chat"],
  ["/", "search chats"], ["↑", "edit the last message"],
];

export class SettingsPanel {
  /**
   * @param {object} of
   * @param {any} of.settings
   * @param {(settings: any) => void} of.onChange
   * @param {(system: string) => void} of.onSystem
   * @param {() => void} of.onClose
   */
  constructor({ settings, onChange, onSystem, onClose }) {
    this.settings = settings;
    this.onChange = onChange;
    /** @type {Map<string, {number: any, slider: any, problem: any}>} */
    this.fields = new Map();
    this.system = h("textarea", {
      id: "system", rows: 4, placeholder: "None", "aria-describedby": "system-help",
      oninput: () => onSystem(this.system.value),
    });
    this.stop = h("textarea", {
      id: "stop", rows: 2, "aria-describedby": "stop-help",
      oninput: () => this.#set("stop", this.stop.value),
    });
    this.content = h(
      "div",
      { id: "settings", class: "panel" },
      h("div", { class: "panel-head" }, h("h2", {}, "Settings"), iconButton("close", "Close the settings", onClose)),
      h("div", { class: "field" },
        h("label", { for: "system" }, "System prompt"),
        this.system,
        h("p", { class: "help", id: "system-help" }, "What the model is told before the first message of this chat.")),
      h("div", { class: "panel-head" }, h("h3", {}, "Sampling"),
        h("button", { type: "button", class: "text-button", onclick: () => this.#reset() }, "Reset")),
      ...CONTROLS.map((control) => this.#field(control)),
      h("div", { class: "field" },
        h("label", { for: "stop" }, "Stop at"),
        this.stop,
        h("p", { class: "help", id: "stop-help" }, "The answer ends before any of these, one a line; \\n stands for a line end.")),
      h("h3", {}, "Keys"),
      h("dl", { class: "keys" }, ...KEYS.flatMap(([key, does]) => [
        h("dt", {}, ...key.split(" ").map((part) => h("kbd", {}, part))),
        h("dd", {}, does),
      ])),
    );
    this.show(settings);
  }

  /** @param {import("./settings.js").Control} control */
  #field(control) {
    const { key, label, help, least, most, step } = control;
    const number = h("input", {
      type: "number", id: `set-${key}`, min: String(least), max: String(most), step: "any",
      inputMode: "decimal", placeholder: control.usual === null ? "none" : "", "aria-describedby": `help-${key}`,
      oninput: () => this.#typed(control, number.value),
    });
    const slider = control.slider && h("input", {
      type: "range", min: String(least), max: String(most), step: String(step),
      "aria-label": `${label}, slider`, tabIndex: -1, // the number says the same to a keyboard
      oninput: () => {
        number.value = slider.value;
        this.#typed(control, slider.value);
      },
    });
    const problem = h("p", { class: "field-problem", role: "alert" });
    this.fields.set(key, { number, slider, problem });
    return h(
      "div",
      { class: "field", title: help },
      h("div", { class: "row" }, h("label", { for: `set-${key}` }, label), number),
      slider,
      problem,
      h("p", { class: "help", id: `help-${key}` }, help),
    );
  }

  /** @param {import("./settings.js").Control} control @param {string} text */
  #typed(control, text) {
    const { number, slider, problem } = this.fields.get(control.key);
    const value = text.trim() === "" && !number.validity.badInput ? null : Number(text);
    const wrong = number.validity.badInput ? "Give a number." : problemOf(control, value);
    problem.textContent = wrong;
    number.setAttribute("aria-invalid", String(wrong !== ""));
    if (wrong) return; // the last good value stays in force
    if (slider && value !== null) slider.value = String(value);
    this.#set(control.key, value);
  }

  /** @param {string} key @param {any} value */
  #set(key, value) {
    this.settings = { ...this.settings, [key]: value };
    this.onChange(this.settings);
  }

  #reset() {
    this.show(usualSettings());
    this.onChange(this.settings);
  }

  /** @param {any} settings */
  show(settings) {
    this.settings = settings;
    for (const [key, { number, slider, problem }] of this.fields) {
      number.value = settings[key] ?? "";
      number.removeAttribute("aria-invalid");
      problem.textContent = "";
      if (slider) slider.value = String(settings[key]);
    }
    this.stop.value = settings.stop;
  }

  /** @param {string} system */
  showSystem(system) {
    if (this.system.value !== system) this.system.value = system;
  }
}
