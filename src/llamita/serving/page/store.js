// Conversations kept in the browser. Several tabs may write at once: a save merges with what is
// stored, in one transaction, and a deletion leaves a mark so that no other tab brings it back.

import { conversationFrom, mergeInto, shownTurns } from "./conversation.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {Conversation | {id: string, deleted: number}} Stored */
/**
 * @typedef {object} Backend
 * @property {() => Promise<Stored[]>} all
 * @property {(id: string) => Promise<Stored | undefined>} get
 * @property {(id: string, change: (old: Stored | undefined) => Stored | null) => Promise<void>} update
 *   one transaction; null removes
 */

const MARK_KEPT = 30 * 24 * 3600 * 1000;
export const LARGEST_IMPORT = 64 * 1024 * 1024;

/** A conversation that is saved here was deleted in another tab. */
export class DeletedElsewhere extends Error {}

export class Store {
  /** @param {Backend} backend @param {BroadcastChannel | null} [channel] to the other tabs */
  constructor(backend, channel = null) {
    this.backend = backend;
    this.channel = channel;
  }

  /** Call back with the id of each conversation that another tab has changed. */
  onChange(callback) {
    this.channel?.addEventListener("message", (event) => callback(event.data));
  }

  /** All conversations, the newest first. @returns {Promise<Conversation[]>} */
  async all() {
    const stored = await this.backend.all();
    return stored.filter(isKept).sort((a, b) => b.changed - a.changed);
  }

  /** @param {string} id @returns {Promise<Conversation | null>} */
  async read(id) {
    const stored = await this.backend.get(id);
    return stored && isKept(stored) ? stored : null;
  }

  /**
   * Keep a conversation. It then also holds what other tabs have added.
   * @param {Conversation} conversation @param {{restore?: boolean}} [options] restore: although it
   *   was deleted
   */
  async save(conversation, { restore = false } = {}) {
    await this.backend.update(conversation.id, (old) => {
      if (old && !isKept(old)) {
        if (!restore) throw new DeletedElsewhere("This chat was deleted in another tab.");
      } else if (old) {
        mergeInto(conversation, old);
      }
      return conversation;
    });
    this.channel?.postMessage(conversation.id);
  }

  /** @param {string} id */
  async remove(id, now = Date.now()) {
    await this.backend.update(id, () => ({ id, deleted: now }));
    this.channel?.postMessage(id);
  }

  /** Forget the marks of what was deleted long ago. */
  async sweep(now = Date.now()) {
    for (const stored of await this.backend.all()) {
      if (!isKept(stored) && now - stored.deleted > MARK_KEPT) {
        await this.backend.update(stored.id, (old) => (old && !isKept(old) ? null : old));
      }
    }
  }

  /** Those that have every word, in title or text. @param {string} query */
  async search(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    return (await this.all()).filter((conversation) => {
      const text = textOf(conversation).toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  /** Everything as JSON, for a file. */
  async exported(now = new Date()) {
    const conversations = await this.all();
    const written = now.toISOString();
    return JSON.stringify({ format: "llamita-chats", version: 1, written, conversations }, null, 1);
  }

  /**
   * Take in what `exported` wrote; what is already there is merged. All or nothing is read.
   * @param {string} text @returns {Promise<number>} of conversations
   */
  async import(text) {
    if (text.length > LARGEST_IMPORT) throw new Error("The file is larger than 64 MB.");
    let value;
    try {
      value = JSON.parse(text);
    } catch {
      throw new Error("The file is no JSON: choose one that this page has exported.");
    }
    if (value?.format !== "llamita-chats" || !Array.isArray(value.conversations)) {
      throw new Error("The file holds no chats of this page: choose one that it has exported.");
    }
    if (value.version !== 1) throw new Error(`The file is of version ${value.version}; this page reads 1.`);
    const conversations = value.conversations.map(conversationFrom);
    const bad = conversations.indexOf(null);
    if (bad >= 0) throw new Error(`Chat ${bad + 1} of the file is damaged; nothing was taken in.`);
    for (const conversation of conversations) await this.save(conversation, { restore: true });
    return conversations.length;
  }
}

/** Nothing but this page's memory: where the browser keeps nothing, and in tests. */
export class MemoryBackend {
  /** @type {Map<string, string>} */
  #stored = new Map();

  async all() {
    return Array.from(this.#stored.values(), (text) => JSON.parse(text));
  }

  async get(id) {
    const text = this.#stored.get(id);
    return text && JSON.parse(text);
  }

  async update(id, change) {
    const next = change(await this.get(id));
    if (next) this.#stored.set(id, JSON.stringify(next));
    else this.#stored.delete(id);
  }
}

export class IndexedBackend {
  /** @param {IDBDatabase} database */
  constructor(database) {
    this.database = database;
  }

  /** @param {IDBFactory} [factory] @returns {Promise<IndexedBackend>} */
  static open(factory = indexedDB) {
    return new Promise((resolve, reject) => {
      const request = factory.open("llamita", 1);
      request.onupgradeneeded = () => request.result.createObjectStore("chats", { keyPath: "id" });
      request.onsuccess = () => {
        // A tab with a newer page need not wait for this one.
        request.result.onversionchange = () => request.result.close();
        resolve(new IndexedBackend(request.result));
      };
      request.onerror = () => reject(request.error);
      request.onblocked = () => reject(new Error("another tab holds an older version open"));
    });
  }

  all() {
    return this.#read((chats) => chats.getAll());
  }

  get(id) {
    return this.#read((chats) => chats.get(id));
  }

  /** @param {(chats: IDBObjectStore) => IDBRequest} ask @returns {Promise<any>} */
  #read(ask) {
    return new Promise((resolve, reject) => {
      const request = ask(this.database.transaction("chats").objectStore("chats"));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  }

  update(id, change) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction("chats", "readwrite");
      const chats = transaction.objectStore("chats");
      let failure = null;
      const request = chats.get(id);
      request.onsuccess = () => {
        try {
          const next = change(request.result);
          if (next) chats.put(next);
          else chats.delete(id);
        } catch (error) {
          failure = error;
          transaction.abort();
        }
      };
      transaction.oncomplete = () => resolve(undefined);
      transaction.onerror = () => reject(transaction.error);
      transaction.onabort = () => reject(failure ?? transaction.error);
    });
  }
}

/** @param {Stored} stored @returns {stored is Conversation} */
function isKept(stored) {
  return !("deleted" in stored);
}

/** @param {Conversation} conversation */
function textOf(conversation) {
  return [conversation.title, ...shownTurns(conversation).map((turn) => turn.content)].join("\n");
}
