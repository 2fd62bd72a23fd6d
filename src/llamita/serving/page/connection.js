// Whether the server is there and which model it has; looks again by itself when it was away.

import { ServerError } from "./api.js";

const SLOWEST = 15_000;

export class Connection {
  /** @type {{name: string, context: number | null, about: string} | null} */
  model = null;
  /** @type {"unknown" | "ready" | "away"} */
  state = "unknown";
  #timer = 0;
  #pause = 1000;

  /**
   * @param {import("./api.js").Server} server
   * @param {{onChange: () => void, onKey: (why: string) => Promise<boolean>}} of onKey: asks for a
   *   key, and says whether there is one now
   */
  constructor(server, { onChange, onKey }) {
    this.server = server;
    this.onChange = onChange;
    this.onKey = onKey;
    const look = () => void (this.state === "away" && this.#look());
    addEventListener("online", look);
    document.addEventListener("visibilitychange", look);
  }

  /** Ask which model there is. Says what went wrong by `state`. */
  async refresh() {
    try {
      await this.name();
    } catch (error) {
      if (error instanceof ServerError && error.kind === "key" && (await this.onKey(error.message))) {
        await this.refresh();
      }
    }
  }

  /** The model's name, asked for if it is not known. @returns {Promise<string>} */
  name = async () => {
    if (this.model && this.state === "ready") return this.model.name;
    try {
      this.model = await this.server.model();
    } catch (error) {
      if (error instanceof ServerError && error.kind !== "key") this.lost();
      throw error;
    }
    this.#set("ready");
    return this.model.name;
  };

  /** It did not answer: look for it until it does. */
  lost() {
    this.#set("away");
    clearTimeout(this.#timer);
    this.#pause = 1000;
    this.#later();
  }

  #later() {
    this.#timer = window.setTimeout(() => void this.#look(), this.#pause);
    this.#pause = Math.min(SLOWEST, this.#pause * 1.6);
  }

  async #look() {
    clearTimeout(this.#timer);
    if (this.state !== "away") return;
    if (!document.hidden && (await this.server.healthy())) {
      // It may have come back with another model.
      this.model = null;
      await this.refresh();
    } else {
      this.#later();
    }
  }

  /** @param {"ready" | "away"} state */
  #set(state) {
    this.state = state;
    this.onChange();
  }
}
