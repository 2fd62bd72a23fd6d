// What the page does: opens, sends, asks again, edits, deletes, saves. It knows data and the server;
// what is shown follows from its calls (`View`).

import {
  addTurn, choose, conversationFrom, newConversation, removeTurn, shownTurns,
} from "./conversation.js";
import { remember, takeAll } from "./memory.js";
import { DeletedElsewhere } from "./store.js";
import { Writer } from "./writer.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/**
 * @typedef {object} View
 * @property {() => void} onConversation another one is open, or its turns have changed
 * @property {(turnId: string) => void} onTurn one turn has changed
 * @property {() => void} onList the list of conversations has changed
 * @property {(text: string, action?: {label: string, run: () => void}) => void} onNotice
 * @property {(writer: Writer) => void} onEnd an answer has ended
 */

// While an answer is written it is saved so often, in milliseconds.
const SAVE_EVERY = 2000;

export class Chat {
  /** @type {Map<string, Writer>} by conversation */
  #writers = new Map();
  /** @type {Map<string, number>} */
  #saved = new Map();
  /** @type {Set<Conversation>} whose save is under way */
  #saving = new Set();
  /** @type {Set<string>} conversations of whose last save nothing good was heard */
  #unsaved = new Set();

  /**
   * @param {object} of
   * @param {import("./store.js").Store} of.store
   * @param {import("./api.js").Server} of.server
   * @param {() => Promise<string>} of.modelName
   * @param {() => any} of.settings
   * @param {View} of.view
   */
  constructor({ store, server, modelName, settings, view }) {
    Object.assign(this, { store, server, modelName, settings, view });
    this.current = newConversation();
    store.onChange((id) => void this.#changedElsewhere(id));
  }

  get shown() {
    return shownTurns(this.current);
  }

  /** The one that writes in the open conversation. */
  get writer() {
    return this.#writers.get(this.current.id) ?? null;
  }

  /** @param {string} id */
  isWriting(id) {
    return this.#writers.has(id);
  }

  /** @param {string} system of the new conversation */
  startNew(system = this.current.system) {
    this.current = newConversation({ system });
    this.view.onConversation();
  }

  /** @param {string} id @returns {Promise<boolean>} whether it is there */
  async open(id) {
    // One that is being written to is in memory, ahead of what is stored.
    const found = this.#writers.get(id)?.conversation ?? (await this.store.read(id));
    if (!found) return false;
    this.current = found;
    this.view.onConversation();
    return true;
  }

  /** @param {string} text */
  send(text) {
    if (this.writer || !text.trim()) return;
    this.#ask(this.shown.at(-1)?.id ?? "", text);
  }

  /**
   * A user's message in another wording: a version beside the old one.
   * @param {string} id @param {string} text
   */
  edit(id, text) {
    if (this.writer || !text.trim()) return;
    this.#ask(this.current.turns[id].parent, text);
  }

  #ask(parent, text) {
    const question = addTurn(this.current, { parent, role: "user", content: text.trim() });
    this.#answer(question.id);
  }

  /** Another answer to the same message. @param {string} id of an answer */
  again(id) {
    if (this.writer) return;
    const turn = this.current.turns[id];
    if (turn.content === "") {
      delete turn.problem;
      delete turn.finish;
      this.#write(turn.id);
    } else {
      this.#answer(turn.parent);
    }
  }

  #answer(parent) {
    this.#write(addTurn(this.current, { parent, role: "assistant" }).id);
  }

  #write(turnId) {
    const conversation = this.current;
    const writer = new Writer({
      server: this.server,
      conversation,
      turnId,
      settings: { ...this.settings() },
      modelName: this.modelName,
      onUpdate: () => this.#written(writer),
    });
    this.#writers.set(conversation.id, writer);
    this.view.onConversation();
    void this.save(conversation);
    void writer.run();
  }

  /** @param {Writer} writer */
  #written(writer) {
    const { conversation } = writer;
    if (this.#writers.get(conversation.id) !== writer) return; // its conversation was deleted
    if (writer.ended) {
      this.#writers.delete(conversation.id);
      conversation.changed = Date.now();
      void this.save(conversation);
    } else if (Date.now() - (this.#saved.get(conversation.id) ?? 0) > SAVE_EVERY) {
      void this.save(conversation);
    }
    if (conversation === this.current) this.view.onTurn(writer.turnId);
    if (writer.ended) this.view.onEnd(writer);
  }

  stop() {
    this.writer?.stop();
  }

  /** @param {string} id of a turn */
  choose(id) {
    if (this.writer) return;
    choose(this.current, id);
    void this.save();
    this.view.onConversation();
  }

  /** @param {string} id of a turn */
  removeTurn(id) {
    if (this.writer) return;
    const conversation = this.current;
    const back = removeTurn(conversation, id);
    const changed = () => {
      void this.save(conversation);
      if (conversation === this.current) this.view.onConversation();
    };
    changed();
    const restore = () => {
      back();
      changed();
    };
    this.view.onNotice("Message deleted", { label: "Undo", run: restore });
  }

  /** @param {string} id of a conversation @param {string} title */
  async rename(id, title) {
    const conversation = id === this.current.id ? this.current : await this.store.read(id);
    if (!conversation || !title.trim()) return;
    Object.assign(conversation, { title: title.trim().slice(0, 200), titled: Date.now() });
    await this.save(conversation);
    if (id === this.current.id) this.view.onConversation();
  }

  /** @param {string} id of a conversation */
  async removeConversation(id) {
    const open = id === this.current.id;
    const writer = this.#writers.get(id);
    this.#writers.delete(id);
    writer?.stop();
    const conversation = open ? this.current : writer?.conversation ?? (await this.store.read(id));
    if (!conversation) return;
    try {
      await this.store.remove(id);
    } catch (error) {
      this.view.onNotice(`Not deleted: ${error.message}`);
      return;
    }
    if (open) this.startNew();
    this.view.onList();
    const restore = async () => {
      await this.save(conversation, { restore: true });
      if (open) await this.open(id);
    };
    this.view.onNotice(`“${conversation.title}” deleted`, { label: "Undo", run: restore });
  }

  /** @param {string} system */
  setSystem(system) {
    Object.assign(this.current, { system, changed: Date.now() });
    if (this.shown.length) void this.save();
  }

  /** @param {Conversation} [conversation] @param {{restore?: boolean}} [options] */
  async save(conversation = this.current, options = {}) {
    this.#saved.set(conversation.id, Date.now());
    this.#saving.add(conversation);
    try {
      await this.store.save(conversation, options);
      this.#unsaved.delete(conversation.id);
    } catch (error) {
      this.#notSaved(conversation, error);
    }
    this.#saving.delete(conversation);
    this.view.onList();
  }

  /** @param {Conversation} conversation @param {any} error */
  #notSaved(conversation, error) {
    if (error instanceof DeletedElsewhere) {
      if (this.#unsaved.has(conversation.id)) return;
      this.#unsaved.add(conversation.id);
      const keep = () => void this.save(conversation, { restore: true });
      this.view.onNotice(error.message, { label: "Keep it", run: keep });
      return;
    }
    if (this.#unsaved.has(conversation.id) && this.isWriting(conversation.id)) return;
    this.#unsaved.add(conversation.id);
    const full = error?.name === "QuotaExceededError";
    const why = full
      ? "the browser's storage is full. Export your chats, then delete some"
      : error?.message ?? error;
    this.view.onNotice(`Not saved: ${why}.`, { label: "Try again", run: () => void this.save(conversation) });
  }

  /** @param {string} id */
  async #changedElsewhere(id) {
    this.view.onList();
    if (id !== this.current.id || this.writer) return;
    const stored = await this.store.read(id);
    if (stored && id === this.current.id && !this.writer) {
      this.current = stored;
      this.view.onConversation();
    }
  }

  /** Keep what is not in the store yet, when the page goes away: only localStorage is in time. */
  flush() {
    const writing = Array.from(this.#writers.values(), (writer) => writer.conversation);
    for (const conversation of new Set([...writing, ...this.#saving])) {
      remember(`unsaved.${conversation.id}`, conversation);
    }
  }

  /** Bring into the store what `flush` has kept. */
  async recover() {
    for (const kept of takeAll("unsaved.")) {
      const conversation = conversationFrom(kept);
      if (conversation) await this.save(conversation);
    }
  }
}
