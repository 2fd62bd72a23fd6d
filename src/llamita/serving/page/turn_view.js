// One turn on the page: its text, what went wrong, how it was written, and what can be done with it.

import { copyButton, h, iconButton } from "./dom.js";
import { LiveMarkdown } from "./render.js";

/** @typedef {import("./conversation.js").Turn} Turn */
/**
 * @typedef {object} Acts
 * @property {(id: string) => void} again
 * @property {(id: string, text: string) => void} edit
 * @property {(id: string) => void} remove
 * @property {(id: string) => void} choose
 * @property {(id: string) => void} giveKey
 * @property {() => void} focusMessage
 */
/** @typedef {{turn: Turn, versions: Turn[], writer: import("./writer.js").Writer | null}} Shown */

const NOTES = {
  length: "Ended at the limit of tokens.",
  cancelled: "Stopped.",
  unfinished: "Not finished: the page was closed while this was written.",
};

export class TurnView {
  /** @param {Turn} turn @param {Acts} acts */
  constructor(turn, acts) {
    this.id = turn.id;
    this.acts = acts;
    this.turn = turn;
    this.editor = null;
    this.ticking = 0;
    this.body = h("div", { class: "body" });
    this.markdown = turn.role === "assistant" ? new LiveMarkdown(this.body) : null;
    this.trouble = h("div", { class: "trouble" });
    this.stats = h("p", { class: "stats" });
    this.actions = h("div", { class: "actions" });
    this.element = h(
      "article",
      { class: `turn ${turn.role}`, "aria-label": turn.role === "user" ? "You" : "Answer", "data-id": turn.id },
      this.body,
      this.trouble,
      h("div", { class: "foot" }, this.stats, this.actions),
    );
  }

  /** @param {Shown} shown */
  update({ turn, versions, writer }) {
    this.turn = turn;
    const writing = writer !== null;
    this.element.classList.toggle("writing", writing);
    this.element.setAttribute("aria-busy", String(writing));
    if (this.markdown) this.markdown.set(turn.content, writing);
    else if (this.body.textContent !== turn.content && !this.editor) this.body.textContent = turn.content;
    this.element.classList.toggle("empty", turn.content === "" && writing);
    this.#showTrouble(turn, writer);
    const about = turn.role === "assistant" && !writing ? statsOf(turn) : "";
    if (this.stats.textContent !== about) this.stats.textContent = about;
    this.#showActions(versions, writing);
  }

  /** @param {Turn} turn @param {import("./writer.js").Writer | null} writer */
  #showTrouble(turn, writer) {
    clearInterval(this.ticking);
    const unfinished = turn.role === "assistant" && !turn.finish && !writer;
    const state = writer?.retryAt ?? turn.problem?.message ?? (unfinished ? "unfinished" : turn.finish);
    if (writer?.retryAt) this.ticking = window.setInterval(() => this.#tick(writer), 500);
    if (state === this.state) return;
    this.state = state;
    this.trouble.replaceChildren();
    if (writer?.retryAt) {
      this.trouble.append(this.#waiting(writer));
      this.#tick(writer);
    } else if (turn.problem) {
      this.trouble.append(this.#problem(turn));
    } else {
      const note = unfinished ? NOTES.unfinished : NOTES[turn.finish];
      if (note && !writer && turn.role === "assistant") this.trouble.append(h("p", { class: "note" }, note));
    }
  }

  /** @param {import("./writer.js").Writer} writer */
  #waiting(writer) {
    const seconds = h("span", { class: "countdown" });
    return h(
      "div",
      { class: "problem waiting" },
      h("p", {}, "The server is busy. Asking again in ", seconds, "."),
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "plain-button", onclick: () => writer.hurry() }, "Ask now"),
        h("button", { type: "button", class: "plain-button", onclick: () => writer.stop() }, "Cancel"),
      ),
    );
  }

  /** @param {import("./writer.js").Writer} writer */
  #tick(writer) {
    const seconds = Math.max(0, Math.ceil(((writer.retryAt ?? 0) - Date.now()) / 1000));
    const place = this.trouble.querySelector(".countdown");
    if (place) place.textContent = `${seconds} s`;
  }

  /** @param {Turn} turn */
  #problem(turn) {
    const { kind, message } = turn.problem;
    const key = kind === "key";
    const act = () => (key ? this.acts.giveKey(this.id) : this.acts.again(this.id));
    const button = h(
      "button",
      { type: "button", class: "plain-button retry", onclick: act },
      key ? "Enter a key" : "Try again",
    );
    return h(
      "div",
      { class: "problem", role: "alert" },
      h("p", {}, message),
      h("div", { class: "buttons" }, button),
    );
  }

  /** @param {Turn[]} versions @param {boolean} writing */
  #showActions(versions, writing) {
    const key = `${writing} ${versions.map((turn) => turn.id).join()}`;
    if (key === this.shownActions) return;
    this.shownActions = key;
    const { acts, id, turn } = this;
    if (writing) return void this.actions.replaceChildren();
    const buttons = [];
    if (versions.length > 1) buttons.push(this.#versions(versions));
    if (turn.content) buttons.push(copyButton("Copy", () => this.turn.content));
    if (turn.role === "user") buttons.push(iconButton("edit", "Edit", () => this.startEditing()));
    else buttons.push(iconButton("again", "Another answer", () => acts.again(id)));
    buttons.push(iconButton("trash", "Delete this and what follows", () => acts.remove(id)));
    this.actions.replaceChildren(...buttons);
  }

  /** @param {Turn[]} versions */
  #versions(versions) {
    const at = versions.findIndex((turn) => turn.id === this.id);
    const go = (step) => () => this.acts.choose(versions[at + step].id);
    return h(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions" },
      iconButton("left", "Version before", go(-1), { disabled: at === 0 }),
      h("span", { "aria-label": `Version ${at + 1} of ${versions.length}` }, `${at + 1}/${versions.length}`),
      iconButton("right", "Next version", go(1), { disabled: at === versions.length - 1 }),
    );
  }

  startEditing() {
    if (this.editor) return;
    const rows = Math.min(12, this.turn.content.split("\n").length + 1);
    const field = h("textarea", { value: this.turn.content, "aria-label": "Edit the message", rows });
    const send = () => {
      if (field.value.trim()) this.acts.edit(this.id, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.stopEditing();
        this.acts.focusMessage();
      }
    });
    this.editor = h(
      "div",
      { class: "editor" },
      field,
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "plain-button", onclick: () => this.stopEditing() }, "Cancel"),
        h("button", { type: "button", class: "main-button", onclick: send }, "Send"),
      ),
    );
    this.body.replaceChildren(this.editor);
    this.element.classList.add("editing");
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  stopEditing() {
    this.editor = null;
    this.element.classList.remove("editing");
    this.body.textContent = this.turn.content;
  }

  remove() {
    clearInterval(this.ticking);
    this.element.remove();
  }
}

/** How an answer was written, in a line. @param {Turn} turn */
export function statsOf(turn) {
  const { usage, seconds } = turn;
  const parts = [];
  if (usage) {
    parts.push(`${number(usage.completion)} tokens`);
    // The first token came before the clock of writing began.
    const speed = seconds && seconds.writing > 0 ? (usage.completion - 1) / seconds.writing : 0;
    if (speed > 0) parts.push(`${speed < 10 ? speed.toFixed(1) : number(Math.round(speed))} tokens/s`);
  }
  if (seconds) parts.push(`first after ${seconds.first.toFixed(2)} s`);
  if (usage) {
    const cached = usage.cached ? `, ${number(usage.cached)} of them cached` : "";
    parts.push(`prompt of ${number(usage.prompt)}${cached}`);
  }
  return parts.join(" · ");
}

/** @param {number} value */
function number(value) {
  return value.toLocaleString("en");
}

