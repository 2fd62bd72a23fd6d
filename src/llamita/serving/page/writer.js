// One answer being written: asks, waits its turn, takes what comes, and records how it ended.

import { ServerError } from "./api.js";
import { messagesTo } from "./conversation.js";
import { requestBody } from "./settings.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

// A server that is still busy after so many waits is left to the reader's patience.
const MOST_WAITS = 6;

export class Writer {
  #stopping = new AbortController();
  #wake = () => {};
  #waits = 0;

  /**
   * @param {object} of
   * @param {import("./api.js").Server} of.server
   * @param {Conversation} of.conversation
   * @param {string} of.turnId the answer's turn
   * @param {any} of.settings
   * @param {() => Promise<string>} of.modelName
   * @param {(writer: Writer) => void} of.onUpdate called whenever there is something to show
   */
  constructor({ server, conversation, turnId, settings, modelName, onUpdate }) {
    this.server = server;
    this.conversation = conversation;
    this.turnId = turnId;
    this.settings = settings;
    this.modelName = modelName;
    this.onUpdate = onUpdate;
    /** When it asks again, in milliseconds since 1970; null while it does not wait. */
    this.retryAt = null;
    this.ended = false;
  }

  get turn() {
    return this.conversation.turns[this.turnId];
  }

  /** Returns when the answer has ended, however it did; what went wrong is in the turn. */
  async run() {
    let finish;
    try {
      finish = await this.#persist();
    } catch (error) {
      if (this.#stopping.signal.aborted) {
        finish = "cancelled";
      } else {
        finish = "error";
        const known = error instanceof ServerError;
        this.turn.problem = { kind: known ? error.kind : "failed", message: error.message };
        if (!known) console.error(error);
      }
    }
    Object.assign(this.turn, { finish, changed: Date.now() });
    this.retryAt = null;
    this.ended = true;
    this.onUpdate(this);
  }

  stop() {
    this.#stopping.abort();
    this.#wake();
  }

  /** Ask now instead of waiting. */
  hurry() {
    this.#wake();
  }

  async #persist() {
    for (;;) {
      try {
        return await this.#ask();
      } catch (error) {
        const waits = error instanceof ServerError && error.wait !== null && this.turn.content === "";
        if (!waits || this.#waits >= MOST_WAITS) throw error;
        this.#waits += 1;
        await this.#wait(error.wait);
      }
    }
  }

  /** @param {number} seconds */
  async #wait(seconds) {
    this.retryAt = Date.now() + seconds * 1000;
    this.onUpdate(this);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, seconds * 1000);
      this.#wake = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
    });
    this.#stopping.signal.throwIfAborted();
    this.retryAt = null;
    this.onUpdate(this);
  }

  async #ask() {
    const model = await this.modelName();
    const messages = messagesTo(this.conversation, this.turn.parent);
    const body = requestBody({ model, messages, settings: this.settings });
    const asked = performance.now();
    let first = null;
    let finish = "stop";
    this.turn.model = model;
    for await (const chunk of this.server.chat(body, this.#stopping.signal)) {
      const { turn } = this;
      if (chunk.text) {
        first ??= performance.now();
        turn.content += chunk.text;
        turn.seconds = { first: (first - asked) / 1000, writing: (performance.now() - first) / 1000 };
      }
      if (chunk.finish) finish = chunk.finish === "length" ? "length" : "stop";
      if (chunk.usage) turn.usage = chunk.usage;
      turn.changed = Date.now();
      this.onUpdate(this);
    }
    this.#stopping.signal.throwIfAborted();
    return finish;
  }
}
