// The server's API, and what can go wrong with it, in words.

import { EventParser } from "./sse.js";

/**
 * What went wrong: `offline` no server answers; `key` it wants another API key; `busy` it asks to
 * wait; `closing` it is about to end or not ready; `refused` it does not accept the request;
 * `failed` it made a mistake; `broken` an answer broke off.
 * @typedef {"offline" | "key" | "busy" | "closing" | "refused" | "failed" | "broken"} Kind
 */

export class ServerError extends Error {
  /** @param {Kind} kind @param {string} message @param {number | null} [wait] seconds */
  constructor(kind, message, wait = null) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

/** @typedef {{prompt: number, completion: number, cached: number}} Usage in tokens */
/** @typedef {{text?: string, finish?: string, usage?: Usage}} Chunk */

export class Server {
  /** @param {{fetch?: typeof fetch, key?: () => string | null}} [options] */
  constructor({ fetch: get = (...of) => fetch(...of), key = () => null } = {}) {
    this.fetch = get;
    this.key = key;
  }

  /** @returns {Promise<{name: string, context: number | null, about: string}>} */
  async model() {
    const response = await this.request("/v1/models", { cache: "no-store" });
    const list = await response.json();
    const [first] = list.data ?? [];
    if (!first) throw new ServerError("failed", "The server lists no model.");
    return { name: first.id, context: first.context ?? null, about: first.about ?? "" };
  }

  /** Whether the server is there and ready. */
  async healthy() {
    try {
      return (await this.fetch("/health", { cache: "no-store" })).ok;
    } catch {
      return false;
    }
  }

  /**
   * An answer as it is written.
   * @param {object} body @param {AbortSignal} signal
   * @returns {AsyncGenerator<Chunk>}
   */
  async *chat(body, signal) {
    const response = await this.request("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
      body: JSON.stringify(body),
      signal,
    });
    const parser = new EventParser();
    const reader = response.body.getReader();
    let finished = false;
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        for (const { data } of parser.push(value)) {
          if (data === "[DONE]") return;
          const chunk = chunkOf(data);
          finished ||= chunk.finish !== undefined;
          yield chunk;
        }
      }
    } catch (error) {
      if (error instanceof ServerError || signal.aborted) throw error;
      throw new ServerError("broken", "The connection to the server was lost while it was answering.");
    } finally {
      reader.cancel().catch(() => {}); // it may have ended, or failed, already
    }
    if (!finished) throw new ServerError("broken", "The answer broke off before its end.");
  }

  /** @param {string} path @param {RequestInit} options */
  async request(path, options) {
    const key = this.key();
    const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
    let response;
    try {
      response = await this.fetch(path, { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ServerError("offline", "The server does not answer. Is it still running?");
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

/** @param {string} data @returns {Chunk} */
export function chunkOf(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new ServerError("broken", "The server sent something that is no JSON.");
  }
  if (event.error) {
    throw new ServerError("broken", event.error.message ?? "The server failed while it was answering.");
  }
  /** @type {Chunk} */
  const chunk = {};
  const [choice] = event.choices ?? [];
  if (choice?.delta?.content) chunk.text = choice.delta.content;
  if (choice?.finish_reason) chunk.finish = choice.finish_reason;
  if (event.usage) {
    chunk.usage = {
      prompt: event.usage.prompt_tokens,
      completion: event.usage.completion_tokens,
      cached: event.usage.prompt_tokens_details?.cached_tokens ?? 0,
    };
  }
  return chunk;
}

/** @param {Response} response */
export async function errorOf(response) {
  const text = await response.text().catch(() => "");
  const said = messageOf(text) || `The server answered ${response.status}.`;
  const wait = secondsUntil(response.headers.get("Retry-After"));
  if (response.status === 401) return new ServerError("key", said);
  if (response.status === 429) return new ServerError("busy", said, wait ?? 5);
  if (response.status === 503) return new ServerError("closing", said, wait);
  return new ServerError(response.status >= 500 ? "failed" : "refused", said);
}

/** @param {string} text of an error's body */
function messageOf(text) {
  try {
    const { error, detail } = JSON.parse(text);
    if (typeof error === "string") return error;
    return error?.message ?? (typeof detail === "string" ? detail : "");
  } catch {
    return ""; // a proxy's page, of no use to a reader
  }
}

/** Seconds of a Retry-After, which may be a number or a date. @param {string | null} header */
export function secondsUntil(header, now = Date.now()) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - now) / 1000;
  return Number.isFinite(seconds) ? Math.min(600, Math.max(1, Math.ceil(seconds))) : null;
}
