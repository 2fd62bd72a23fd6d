// Run by tests/serving/test_page_modules.py, which puts these beside the page's modules.

import assert from "node:assert/strict";
import { test } from "node:test";

import { chunkOf, errorOf, secondsUntil, Server, ServerError } from "./api.js";
import { EventParser } from "./sse.js";

const STREAM =
  ': hello\r\n\r\ndata: {"a": "wörld 🦙"}\n\nevent: ping\rdata: one\rdata:two\r\r' +
  "data: x\r\ndata: y\r\n\r\ndata\n\nid: 7\ndata:  spaced\r\n\r\ndata: [DONE]\n\ndata: never ended";
const EVENTS = [
  { event: "message", data: '{"a": "wörld 🦙"}' },
  { event: "ping", data: "one\ntwo" },
  { event: "message", data: "x\ny" },
  { event: "message", data: "" },
  { event: "message", data: " spaced" },
  { event: "message", data: "[DONE]" },
];

test("events are the same wherever the bytes are cut", () => {
  const bytes = new TextEncoder().encode(STREAM);
  for (let cut = 0; cut <= bytes.length; cut += 1) {
    const parser = new EventParser();
    const events = [...parser.push(bytes.slice(0, cut)), ...parser.push(bytes.slice(cut))];
    assert.deepEqual(events, EVENTS, `cut at ${cut}`);
  }
});

test("events are the same byte by byte", () => {
  const parser = new EventParser();
  const events = [...new TextEncoder().encode(STREAM)].flatMap((byte) => parser.push(Uint8Array.of(byte)));
  assert.deepEqual(events, EVENTS);
});

/** @param {string[]} parts */
function answering(parts, status = 200, headers = {}) {
  const body = new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(new TextEncoder().encode(part));
      controller.close();
    },
  });
  return new Server({ fetch: async () => new Response(body, { status, headers }), key: () => "k" });
}

async function all(server) {
  const chunks = [];
  for await (const chunk of server.chat({}, new AbortController().signal)) chunks.push(chunk);
  return chunks;
}

test("an answer that ends without a word is broken", async () => {
  const text = 'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n';
  await assert.rejects(all(answering([text])), { kind: "broken" });
  const end = 'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n';
  const chunks = await all(answering([text, end]));
  assert.deepEqual(chunks.map((chunk) => chunk.text ?? chunk.finish), ["Hi", "length"]);
});

test("an error in the middle of a stream says what the server said", async () => {
  const parts = ['data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: {"error":{"message":"out of memory"}}\n\n'];
  await assert.rejects(all(answering(parts)), { kind: "broken", message: "out of memory" });
});

test("statuses become kinds", async () => {
  const kinds = { 400: "refused", 401: "key", 403: "refused", 404: "refused", 413: "refused", 429: "busy", 500: "failed", 503: "closing" };
  for (const [status, kind] of Object.entries(kinds)) {
    const body = JSON.stringify({ error: { message: `said ${status}` } });
    const error = await errorOf(new Response(body, { status: Number(status), headers: { "Retry-After": "7" } }));
    assert.ok(error instanceof ServerError);
    assert.deepEqual([error.kind, error.message], [kind, `said ${status}`]);
    assert.equal(error.wait, kind === "busy" || kind === "closing" ? 7 : null);
  }
  const page = await errorOf(new Response("<html>Bad gateway</html>", { status: 502 }));
  assert.equal(page.message, "The server answered 502.");
});

test("no connection is offline", async () => {
  const server = new Server({ fetch: async () => { throw new TypeError("Failed to fetch"); } });
  await assert.rejects(all(server), { kind: "offline" });
  assert.equal(await server.healthy(), false);
});

test("the key goes along", async () => {
  let asked;
  const get = async (path, options) => {
    asked = options.headers.Authorization;
    return Response.json({ data: [{ id: "m", context: 64 }] });
  };
  const server = new Server({ fetch: get, key: () => "secret" });
  assert.deepEqual(await server.model(), { name: "m", context: 64, about: "" });
  assert.equal(asked, "Bearer secret");
});

test("Retry-After in seconds, as a date, and nonsense", () => {
  assert.equal(secondsUntil("12"), 12);
  assert.equal(secondsUntil("0"), 1);
  assert.equal(secondsUntil("99999"), 600);
  const now = Date.parse("Wed, 21 Oct 2026 07:28:00 GMT");
  assert.equal(secondsUntil("Wed, 21 Oct 2026 07:28:30 GMT", now), 30);
  assert.equal(secondsUntil("soon"), null);
  assert.equal(secondsUntil(null), null);
});

test("usage with the cached part", () => {
  const usage = { prompt_tokens: 9, completion_tokens: 4, prompt_tokens_details: { cached_tokens: 5 } };
  assert.deepEqual(chunkOf(JSON.stringify({ choices: [], usage })).usage, { prompt: 9, completion: 4, cached: 5 });
  assert.equal(chunkOf('{"choices":[{"delta":{"role":"assistant","content":""}}]}').text, undefined);
});
