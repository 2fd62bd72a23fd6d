// The page, put together: what happens is in chat.js, what is seen in the modules beside it.

import { Announcer } from "./announcer.js";
import { Server } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { byId, icon } from "./dom.js";
import { Follower } from "./follower.js";
import { recall, recallKey, remember, rememberKey } from "./memory.js";
import { askKey, Drawer, notice, themeSwitch } from "./panels.js";
import { settingsFrom } from "./settings.js";
import { SettingsPanel } from "./settings_panel.js";
import { Sidebar } from "./sidebar.js";
import { IndexedBackend, MemoryBackend, Store } from "./store.js";
import { Thread } from "./thread.js";

class Page {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    this.settings = settingsFrom(recall("settings"));
    this.server = new Server({ key: recallKey });
    this.connection = new Connection(this.server, { onChange: () => this.#showConnection(), onKey: giveKey });
    this.announcer = new Announcer(byId("live"));
    this.chat = this.#makeChat();
    this.thread = this.#makeThread();
    this.composer = new Composer({
      onSend: (text) => {
        this.chat.send(text);
        this.follower.toEnd();
      },
      onStop: () => this.chat.stop(),
      onEditLast: () => this.thread.editLast(),
    });
    this.follower = new Follower(byId("scroller"), byId("thread"), (away) => {
      byId("newest").hidden = !away;
    });
    this.#makePanels();
    this.#listen();
  }

  #makeChat() {
    return new Chat({
      store: this.store,
      server: this.server,
      modelName: this.connection.name,
      settings: () => this.settings,
      view: {
        onConversation: () => this.#showConversation(),
        onTurn: (id) => {
          this.thread.changed(id);
          const { writer } = this.chat;
          if (writer) this.announcer.follow(writer.turn.content);
        },
        onList: () => void this.sidebar.show(),
        onNotice: notice,
        onEnd: (writer) => this.#ended(writer),
      },
    });
  }

  #makeThread() {
    const { chat } = this;
    return new Thread(chat, {
      again: (id) => chat.again(id),
      edit: (id, text) => {
        chat.edit(id, text);
        this.composer.focus();
        this.follower.toEnd();
      },
      remove: (id) => chat.removeTurn(id),
      choose: (id) => chat.choose(id),
      giveKey: async (id) => {
        if (await giveKey(chat.current.turns[id].problem.message)) chat.again(id);
      },
      focusMessage: () => this.composer.focus(),
    });
  }

  #makePanels() {
    this.sidebar = new Sidebar({
      store: this.store,
      chat: this.chat,
      onOpen: (id) => void this.open(id),
      onNew: () => this.startNew(),
      onNotice: notice,
      onClose: () => this.sidebarDrawer.close(),
    });
    this.panel = new SettingsPanel({
      settings: this.settings,
      onChange: (settings) => {
        this.settings = settings;
        remember("settings", settings);
      },
      onSystem: (system) => {
        this.chat.setSystem(system);
        remember("system", system); // of the next new chat as well
      },
      onClose: () => this.settingsDrawer.close(),
    });
    byId("sidebar-button").append(icon("menu"));
    byId("settings-button").append(icon("settings"));
    byId("newest").prepend(icon("down"));
    themeSwitch(byId("theme-button"));
    this.sidebarDrawer = new Drawer({
      content: this.sidebar.content,
      place: byId("sidebar-place"),
      button: byId("sidebar-button"),
      label: "Chats",
      wide: "(min-width: 800px)",
      open: recall("sidebar", true),
      onToggle: (open) => remember("sidebar", open),
    });
    this.settingsDrawer = new Drawer({
      content: this.panel.content,
      place: byId("settings-place"),
      button: byId("settings-button"),
      label: "Settings",
      wide: "(min-width: 1180px)",
      open: false,
    });
  }

  #listen() {
    byId("newest").addEventListener("click", () => this.follower.toEnd());
    addEventListener("keydown", (event) => this.#key(event));
    addEventListener("hashchange", () => void this.#follow(location.hash.slice(1)));
    addEventListener("pagehide", () => this.chat.flush());
    addEventListener("storage", ({ key }) => {
      if (key !== "llamita.settings") return;
      this.settings = settingsFrom(recall("settings"));
      this.panel.show(this.settings);
    });
  }

  async start() {
    // A new chat has no address: take the one that is named before it goes.
    const named = location.hash.slice(1);
    this.chat.startNew(recall("system", ""));
    await this.chat.recover();
    await this.#follow(named);
    void this.sidebar.show();
    void this.connection.refresh();
    this.composer.focus();
    await this.store.sweep();
  }

  /** Open the chat that the address names. @param {string} id */
  async #follow(id) {
    if (!id || id === this.chat.current.id || document.getElementById(id)) return;
    if (!(await this.chat.open(id))) notice("This chat is not in this browser.");
  }

  /** @param {string} id */
  async open(id) {
    if (!(await this.chat.open(id))) return;
    this.sidebarDrawer.away();
    this.follower.toEnd();
    this.composer.focus();
  }

  startNew() {
    this.chat.startNew(recall("system", ""));
    this.sidebarDrawer.away();
    this.composer.focus();
  }

  #showConversation() {
    const { current, shown, writer } = this.chat;
    this.thread.show();
    this.composer.show(writer !== null);
    this.panel.showSystem(current.system);
    const title = current.title || "New chat";
    byId("title").textContent = title;
    document.title = current.title ? `${title} · llamita` : "llamita";
    const place = shown.length ? `#${current.id}` : location.pathname;
    // Not assigned to location: a chat is no step to go back to.
    history.replaceState(null, "", place);
    this.#showContext();
    if (writer) this.announcer.begin();
    void this.sidebar.show();
  }

  /** @param {import("./writer.js").Writer} writer */
  #ended(writer) {
    const { problem } = writer.turn;
    if (["offline", "closing", "broken"].includes(problem?.kind)) this.connection.lost();
    if (writer.conversation !== this.chat.current) {
      const { id, title } = writer.conversation;
      notice(`“${title}” is answered`, { label: "Open", run: () => void this.open(id) });
      return;
    }
    this.announcer.follow(writer.turn.content, true);
    if (writer.turn.finish === "stop") this.announcer.say("End of the answer.");
    this.composer.show(false);
    this.#showContext();
    if (problem?.kind === "key") void this.#keyThenAgain(writer.turnId, problem.message);
  }

  /** @param {string} id @param {string} why */
  async #keyThenAgain(id, why) {
    if ((await giveKey(why)) && this.chat.current.turns[id]) this.chat.again(id);
  }

  #showConnection() {
    const { model, state } = this.connection;
    byId("model").dataset.state = state;
    byId("model-name").textContent = state === "away" ? "Server not reachable" : model?.name ?? "Connecting…";
    byId("model").title = state === "away" ? "Looking for it again every few seconds" : model?.about ?? "";
    this.#showContext();
  }

  /** How much of the model's context the last answer and its prompt took. */
  #showContext() {
    const context = this.connection.model?.context;
    const last = this.chat.shown.findLast((turn) => turn.usage);
    const place = byId("context");
    place.hidden = !context || !last;
    if (place.hidden) return;
    const used = last.usage.prompt + last.usage.completion;
    byId("context-meter").value = Math.min(1, used / context);
    byId("context-text").textContent = `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens`;
    place.title = "How much of the model's context this chat has used";
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const typing = /** @type {any} */ (event.target).closest?.("input, textarea, dialog");
    const command = (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey;
    if (command && event.key.toLowerCase() === "k") {
      event.preventDefault();
      this.startNew();
    } else if (event.key === "Escape" && this.chat.writer && !document.querySelector("dialog[open]")) {
      this.chat.stop();
      this.composer.focus();
    } else if (event.key === "/" && !typing) {
      event.preventDefault();
      this.sidebarDrawer.open();
      this.sidebar.search.focus();
    }
  }
}

/** @param {string} why @returns {Promise<boolean>} whether there is a key to try */
async function giveKey(why) {
  if (byId("key-dialog").open) return false;
  const key = await askKey(why);
  if (key) rememberKey(key);
  return key !== null;
}

async function openStore() {
  const channel = "BroadcastChannel" in window ? new BroadcastChannel("llamita") : null;
  try {
    return new Store(await IndexedBackend.open(), channel);
  } catch (error) {
    const why = error?.message ?? error;
    notice(`This browser keeps no chats (${why}). Export what you want to keep before you leave.`);
    return new Store(new MemoryBackend(), channel);
  }
}

await new Page(await openStore()).start();
