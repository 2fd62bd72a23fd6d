// Server-sent events out of a stream of bytes, wherever the bytes are cut.

/** @typedef {{event: string, data: string}} ServerEvent */

/**
 * Takes bytes as they arrive and gives whole events.
 *
 * A character, a line end (LF, CRLF or CR) or a field may be split between two pushes. What stands
 * after the last blank line when the stream ends is no event, as the standard has it.
 */
export class EventParser {
  #decoder = new TextDecoder("utf-8");
  #rest = "";
  #event = "";
  /** @type {string[]} */
  #data = [];

  /**
   * @param {Uint8Array} bytes
   * @returns {ServerEvent[]}
   */
  push(bytes) {
    let text = this.#rest + this.#decoder.decode(bytes, { stream: true });
    let held = "";
    if (text.endsWith("\r")) {
      // It may be the first half of a CRLF.
      text = text.slice(0, -1);
      held = "\r";
    }
    const lines = text.split(/\r\n|\r|\n/);
    this.#rest = lines.pop() + held;
    const events = [];
    for (const line of lines) {
      const event = this.#take(line);
      if (event) events.push(event);
    }
    return events;
  }

  /** @param {string} line @returns {ServerEvent | null} */
  #take(line) {
    if (line === "") {
      const event = this.#data.length
        ? { event: this.#event || "message", data: this.#data.join("\n") }
        : null;
      this.#event = "";
      this.#data = [];
      return event;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return null; // a comment, which servers send to keep the connection open
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    return null;
  }
}
