// The turns of the open conversation, kept in step with it; a growing answer is drawn at most once
// a frame, and less often where drawing takes long.

import { childrenOf } from "./conversation.js";
import { byId } from "./dom.js";
import { TurnView } from "./turn_view.js";

// Drawing takes at most this share of the time.
const SHARE = 0.25;

export class Thread {
  /** @type {Map<string, TurnView>} */
  #views = new Map();
  /** @type {Set<string>} */
  #due = new Set();
  #planned = false;
  #conversationId = "";

  /** @param {import("./chat.js").Chat} chat @param {import("./turn_view.js").Acts} acts */
  constructor(chat, acts) {
    this.chat = chat;
    this.acts = acts;
    this.place = byId("turns");
  }

  /** Show the open conversation as it is. */
  show() {
    const { current, shown } = this.chat;
    if (current.id !== this.#conversationId) {
      for (const view of this.#views.values()) view.remove();
      this.#views.clear();
      this.#conversationId = current.id;
    }
    const ids = new Set(shown.map((turn) => turn.id));
    for (const [id, view] of this.#views) {
      if (ids.has(id)) continue;
      view.remove();
      this.#views.delete(id);
    }
    shown.forEach((turn, at) => {
      const view = this.#views.get(turn.id) ?? new TurnView(turn, this.acts);
      this.#views.set(turn.id, view);
      const there = this.place.children[at] ?? null;
      if (there !== view.element) this.place.insertBefore(view.element, there);
      view.element.classList.toggle("last", at >= shown.length - 2);
      this.#update(turn.id);
    });
    byId("welcome").hidden = shown.length > 0;
  }

  /** @param {string} id of a turn that has changed */
  changed(id) {
    const writing = this.chat.writer?.turnId === id;
    if (!writing) return this.#update(id);
    this.#due.add(id);
    if (this.#planned) return;
    this.#planned = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const began = performance.now();
    for (const id of this.#due) this.#update(id);
    this.#due.clear();
    const took = performance.now() - began;
    setTimeout(() => {
      this.#planned = false;
      if (this.#due.size) this.changed([...this.#due][0]);
    }, took / SHARE - took);
  }

  /** @param {string} id */
  #update(id) {
    const view = this.#views.get(id);
    const turn = this.chat.current.turns[id];
    if (!view || !turn) return;
    const writer = this.chat.writer?.turnId === id ? this.chat.writer : null;
    view.update({ turn, versions: childrenOf(this.chat.current, turn.parent), writer });
  }

  /** Begin to edit the last message of the user's. */
  editLast() {
    const last = this.chat.shown.findLast((turn) => turn.role === "user");
    if (!last || this.chat.writer) return false;
    this.#views.get(last.id)?.startEditing();
    return true;
  }
}
