// The field for a message, and the button beside it that sends or stops.

import { byId, icon } from "./dom.js";

export class Composer {
  /**
   * @param {object} of
   * @param {(text: string) => void} of.onSend
   * @param {() => void} of.onStop
   * @param {() => boolean} of.onEditLast
   */
  constructor({ onSend, onStop, onEditLast }) {
    this.field = byId("message");
    this.button = byId("send");
    this.writing = false;
    this.onSend = onSend;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.writing) onStop();
      else this.#send();
      this.focus(); // the button goes out and would take the focus along
    });
    this.field.addEventListener("input", () => this.#fit());
    this.field.addEventListener("keydown", (event) => {
      if (event.isComposing) return; // Enter ends the composition of a character
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        this.#send();
      } else if (event.key === "ArrowUp" && this.field.value === "") {
        if (onEditLast()) event.preventDefault();
      }
    });
    this.show(false);
  }

  #send() {
    const text = this.field.value;
    if (this.writing || !text.trim()) return;
    this.field.value = "";
    this.#fit();
    this.onSend(text);
  }

  #fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
    this.button.disabled = !this.writing && !this.field.value.trim();
  }

  /** @param {boolean} writing whether an answer is being written */
  show(writing) {
    this.writing = writing;
    this.button.replaceChildren(icon(writing ? "stop" : "send"));
    this.button.setAttribute("aria-label", writing ? "Stop" : "Send");
    this.button.title = writing ? "Stop (Esc)" : "Send (Enter)";
    this.button.classList.toggle("stop", writing);
    this.#fit();
  }

  focus() {
    // Under a finger this would bring up a keyboard over half of the page, unasked.
    if (!matchMedia("(pointer: coarse)").matches) this.field.focus();
  }
}
