// What lies beside or over the conversation: drawers, questions, notices.

import { byId, h, icon, iconButton } from "./dom.js";

/** A panel that stands beside the conversation where there is room, and over it where there is not. */
export class Drawer {
  /**
   * @param {object} of
   * @param {HTMLElement} of.content
   * @param {HTMLElement} of.place where it stands on a wide page
   * @param {HTMLElement} of.button
   * @param {string} of.label
   * @param {string} of.wide a media query
   * @param {boolean} of.open on a wide page, at first
   * @param {(open: boolean) => void} [of.onToggle] on a wide page
   */
  constructor({ content, place, button, label, wide, open, onToggle = () => {} }) {
    this.content = content;
    this.place = place;
    this.button = button;
    this.onToggle = onToggle;
    this.beside = open;
    this.dialog = h("dialog", { class: `drawer ${place.id}`, "aria-label": label });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside the content
    });
    this.dialog.addEventListener("close", () => this.#settle());
    document.body.append(this.dialog);
    this.query = matchMedia(wide);
    this.query.addEventListener("change", () => this.#settle());
    button.addEventListener("click", () => this.toggle());
    this.#settle();
  }

  get isOpen() {
    return this.query.matches ? this.beside : this.dialog.open;
  }

  toggle() {
    if (this.isOpen) this.close();
    else this.open();
  }

  open() {
    if (this.query.matches) {
      this.beside = true;
      this.onToggle(true);
    } else if (!this.dialog.open) {
      this.dialog.append(this.content);
      this.dialog.showModal();
    }
    this.#settle();
  }

  close() {
    if (this.query.matches) {
      this.beside = false;
      this.onToggle(false);
    } else if (this.dialog.open) {
      this.dialog.close();
    }
    this.#settle();
  }

  /** Close it where it lies over the conversation. */
  away() {
    if (this.dialog.open) this.dialog.close();
  }

  #settle() {
    if (this.query.matches) {
      if (this.dialog.open) this.dialog.close();
      if (this.content.parentNode !== this.place) this.place.append(this.content);
      this.place.hidden = !this.beside;
    } else {
      this.place.hidden = true;
    }
    this.button.setAttribute("aria-expanded", String(this.isOpen));
  }
}

/** Ask for the server's API key; null if none is given. @param {string} why @returns {Promise<string | null>} */
export function askKey(why) {
  const dialog = byId("key-dialog");
  const field = byId("key-field");
  byId("key-why").textContent = why;
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const submit = (event) => {
      event.preventDefault();
      dialog.close(field.value.trim());
    };
    byId("key-form").onsubmit = submit;
    byId("key-cancel").onclick = () => dialog.close("");
    dialog.oncancel = () => void (dialog.returnValue = "");
    dialog.onclose = () => {
      const key = dialog.returnValue;
      dialog.returnValue = "";
      field.value = "";
      resolve(key || null);
    };
  });
}

const NOTICE_SECONDS = 10;

/**
 * A notice at the page's foot, which goes after a while unless it is pointed at.
 * @param {string} text @param {{label: string, run: () => void}} [action]
 */
export function notice(text, action) {
  const place = byId("notices");
  const gone = () => element.remove();
  const element = h("div", { class: "notice" }, h("span", {}, text));
  if (action) {
    const run = () => {
      gone();
      action.run();
    };
    element.append(h("button", { type: "button", class: "text-button", onclick: run }, action.label));
  }
  element.append(iconButton("close", "Dismiss", gone));
  let timer = setTimeout(gone, NOTICE_SECONDS * 1000);
  const hold = () => clearTimeout(timer);
  const release = () => void (timer = setTimeout(gone, NOTICE_SECONDS * 500));
  element.addEventListener("pointerenter", hold);
  element.addEventListener("pointerleave", release);
  element.addEventListener("focusin", hold);
  element.addEventListener("focusout", release);
  while (place.childElementCount > 2) place.firstElementChild.remove();
  place.append(element);
}

const THEMES = { system: "As the system", light: "Light", dark: "Dark" };
const PICTURES = { system: "system", light: "sun", dark: "moon" };

/** The button that goes through the themes. @param {HTMLButtonElement} button */
export function themeSwitch(button) {
  const root = document.documentElement;
  const show = () => {
    const theme = root.dataset.theme ?? "system";
    button.replaceChildren(icon(PICTURES[theme]));
    button.setAttribute("aria-label", `Theme: ${THEMES[theme]}`);
    button.title = `Theme: ${THEMES[theme]}`;
  };
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(root.dataset.theme ?? "system") + 1) % names.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("llamita.theme", next); // read as it is by theme.js
    } catch {
      // It holds for as long as the page is open.
    }
    show();
  });
  show();
}
