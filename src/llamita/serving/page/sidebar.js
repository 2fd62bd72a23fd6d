// The list of chats: new, search, open, rename, delete, export, import.

import { h, icon, iconButton } from "./dom.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

const DAY = 24 * 3600 * 1000;

export class Sidebar {
  #wanted = 0;

  /**
   * @param {object} of
   * @param {import("./store.js").Store} of.store
   * @param {import("./chat.js").Chat} of.chat
   * @param {(id: string) => void} of.onOpen
   * @param {() => void} of.onNew
   * @param {(text: string) => void} of.onNotice
   * @param {() => void} of.onClose
   */
  constructor({ store, chat, onOpen, onNew, onNotice, onClose }) {
    Object.assign(this, { store, chat, onOpen, onNotice });
    this.search = h("input", {
      type: "search", placeholder: "Search chats", "aria-label": "Search chats", autocomplete: "off",
      oninput: () => void this.show(),
    });
    this.list = h("ul", { class: "chats" });
    this.file = h("input", {
      type: "file", accept: "application/json,.json", class: "sr-only", tabIndex: -1,
      "aria-label": "File to import", onchange: () => void this.#import(),
    });
    this.content = h(
      "nav",
      { id: "sidebar", class: "panel", "aria-label": "Chats" },
      h(
        "div",
        { class: "brand" },
        h("img", { src: "/assets/llama.svg", alt: "", width: 30, height: 30 }),
        h("span", {}, "llamita"),
        iconButton("close", "Close", onClose, { class: "icon-button only-over" }),
      ),
      h(
        "button",
        { type: "button", class: "new-chat", onclick: onNew, title: "New chat (Ctrl K)" },
        icon("plus"),
        "New chat",
      ),
      h("div", { class: "search" }, icon("search"), this.search),
      this.list,
      h(
        "div",
        { class: "keep" },
        textButton("out", "Export", () => void this.#export()),
        textButton("into", "Import", () => this.file.click()),
        this.file,
      ),
    );
  }

  /** Draw the list as the store has it. */
  async show() {
    const turn = (this.#wanted += 1);
    const query = this.search.value.trim();
    let chats;
    try {
      chats = query ? await this.store.search(query) : await this.store.all();
    } catch (error) {
      return this.onNotice(`The chats cannot be read: ${error.message}`);
    }
    // A newer call draws instead; a title that is being edited stays.
    if (turn !== this.#wanted || this.list.querySelector(".renaming")) return;
    const focused = document.activeElement?.closest?.("[data-chat]")?.getAttribute("data-chat");
    const rows = [];
    let heading = "";
    for (const chat of chats) {
      const age = ageOf(chat.changed);
      if (age !== heading) rows.push(h("li", { class: "age" }, (heading = age)));
      rows.push(this.#row(chat));
    }
    if (!chats.length) rows.push(h("li", { class: "none" }, query ? "Nothing found." : "No chats yet."));
    this.list.replaceChildren(...rows);
    if (focused) this.list.querySelector(`[data-chat="${focused}"] a`)?.focus();
  }

  /** @param {Conversation} chat */
  #row(chat) {
    const open = chat.id === this.chat.current.id;
    const link = h(
      "a",
      { href: `#${chat.id}`, title: chat.title, "aria-current": open ? "page" : null },
      chat.title || "Untitled",
      this.chat.isWriting(chat.id) && h("span", { class: "busy", role: "img", "aria-label": "being answered" }),
    );
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // into a tab of its own
      event.preventDefault();
      this.onOpen(chat.id);
    });
    const row = h("li", { class: open ? "chat open" : "chat", "data-chat": chat.id }, link);
    row.append(
      iconButton("edit", `Rename “${chat.title}”`, () => this.#rename(row, chat)),
      iconButton("trash", `Delete “${chat.title}”`, () => void this.chat.removeConversation(chat.id)),
    );
    return row;
  }

  /** @param {HTMLElement} row @param {Conversation} chat */
  #rename(row, chat) {
    const field = h("input", { class: "renaming", value: chat.title, "aria-label": "Title", maxLength: 200 });
    let ended = false;
    const end = (keep) => {
      if (ended) return;
      ended = true;
      field.classList.remove("renaming");
      const renamed = keep && field.value.trim() && field.value !== chat.title;
      void (renamed ? this.chat.rename(chat.id, field.value) : Promise.resolve()).then(() => this.show());
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        event.preventDefault();
        end(false);
      }
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.select();
  }

  async #export() {
    const url = URL.createObjectURL(new Blob([await this.store.exported()], { type: "application/json" }));
    const name = `llamita-chats-${new Date().toISOString().slice(0, 10)}.json`;
    h("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  async #import() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    try {
      const count = await this.store.import(await file.text());
      this.onNotice(`${count} ${count === 1 ? "chat" : "chats"} imported`);
    } catch (error) {
      this.onNotice(`Not imported: ${error.message}`);
    }
    await this.show();
  }
}

/** @param {"out" | "into"} picture @param {string} label @param {() => void} onclick */
function textButton(picture, label, onclick) {
  return h("button", { type: "button", class: "text-button", onclick }, icon(picture), label);
}

/** @param {number} changed */
function ageOf(changed, now = Date.now()) {
  const today = new Date(now).setHours(0, 0, 0, 0);
  if (changed >= today) return "Today";
  if (changed >= today - DAY) return "Yesterday";
  if (changed >= today - 7 * DAY) return "Last seven days";
  return new Date(changed).toLocaleDateString("en", { month: "long", year: "numeric" });
}
