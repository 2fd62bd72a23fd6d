import assert from "node:assert/strict";
import { test } from "node:test";

import { sentencesFrom } from "./announcer.js";
import {
  addTurn, childrenOf, choose, conversationFrom, messagesTo, newConversation, removeTurn, shownTurns, titleOf,
} from "./conversation.js";
import { CONTROLS, problemOf, requestBody, settingsFrom, stopStrings, usualSettings } from "./settings.js";
import { DeletedElsewhere, MemoryBackend, Store } from "./store.js";

const texts = (conversation) => shownTurns(conversation).map((turn) => turn.content);

function exchange(conversation, question, answer, now) {
  const parent = shownTurns(conversation).at(-1)?.id ?? "";
  const asked = addTurn(conversation, { parent, role: "user", content: question }, now);
  return addTurn(conversation, { parent: asked.id, role: "assistant", content: answer, finish: "stop" }, now);
}

test("editing keeps the old branch, and its way is remembered", () => {
  const c = newConversation();
  exchange(c, "a", "A", 1);
  const late = exchange(c, "b", "B", 2);
  const edited = addTurn(c, { parent: c.turns[late.parent].parent, role: "user", content: "b2" }, 3);
  addTurn(c, { parent: edited.id, role: "assistant", content: "B2" }, 3);
  assert.deepEqual(texts(c), ["a", "A", "b2", "B2"]);
  choose(c, late.parent);
  assert.deepEqual(texts(c), ["a", "A", "b", "B"]);
  assert.deepEqual(childrenOf(c, c.turns[late.parent].parent).map((turn) => turn.content), ["b", "b2"]);
});

test("versions made in the same millisecond keep their order", () => {
  const c = newConversation();
  for (const content of ["1", "2", "3"]) addTurn(c, { parent: "", role: "user", content }, 5);
  assert.deepEqual(childrenOf(c, "").map((turn) => turn.content), ["1", "2", "3"]);
});

test("deleting takes what follows along, and can be taken back", () => {
  const c = newConversation();
  exchange(c, "a", "A", 1);
  const last = exchange(c, "b", "B", 2);
  const back = removeTurn(c, last.parent, 3);
  assert.deepEqual(texts(c), ["a", "A"]);
  back(4);
  assert.deepEqual(texts(c), ["a", "A", "b", "B"]);
});

test("a deleted version leaves the other one shown", () => {
  const c = newConversation();
  const first = exchange(c, "a", "A", 1);
  const second = addTurn(c, { parent: first.parent, role: "assistant", content: "A2" }, 2);
  removeTurn(c, second.id, 3);
  assert.deepEqual(texts(c), ["a", "A"]);
});

test("messages for the server", () => {
  const c = newConversation({ system: "Be brief." });
  const failed = exchange(c, "a", "", 1);
  const next = addTurn(c, { parent: failed.id, role: "user", content: "b" }, 2);
  assert.deepEqual(messagesTo(c, next.id), [
    { role: "system", content: "Be brief." },
    { role: "user", content: "a\n\nb" },
  ]);
  const answer = addTurn(c, { parent: next.id, role: "assistant", content: "B" }, 3);
  assert.equal(messagesTo(c, answer.parent).length, 2);
});

test("titles", () => {
  assert.equal(titleOf("  # What is\nthis"), "What is");
  assert.equal(titleOf("**"), "Untitled");
  const long = titleOf(`${"word ".repeat(30)}`);
  assert.ok(long.length <= 61 && long.endsWith("word…"));
});

test("two tabs do not lose each other's turns", async () => {
  const store = new Store(new MemoryBackend());
  const start = newConversation();
  exchange(start, "a", "A", 1);
  await store.save(start);
  const [one, two] = [await store.read(start.id), await store.read(start.id)];
  exchange(one, "from one", "1", 10);
  Object.assign(one, { title: "Named in one", titled: 10 });
  exchange(two, "from two", "2", 11);
  await store.save(one);
  await store.save(two);
  const stored = await store.read(start.id);
  const all = Object.values(stored.turns).map((turn) => turn.content).sort();
  assert.deepEqual(all, ["1", "2", "A", "a", "from one", "from two"]);
  assert.equal(stored.title, "Named in one");
  assert.deepEqual(texts(stored), ["a", "A", "from two", "2"]);
  assert.deepEqual(texts(two), ["a", "A", "from two", "2"]);
  assert.ok(Object.values(two.turns).some((turn) => turn.content === "from one"));
});

test("an older state of a turn does not overwrite a newer one", async () => {
  const store = new Store(new MemoryBackend());
  const writing = newConversation();
  const turn = exchange(writing, "a", "part", 1);
  await store.save(writing);
  const other = await store.read(writing.id);
  Object.assign(turn, { content: "part and more", changed: 5 });
  await store.save(writing);
  other.changed = 9;
  await store.save(other);
  assert.equal((await store.read(writing.id)).turns[turn.id].content, "part and more");
  // The writer's own object stays the one it writes to.
  assert.equal(writing.turns[turn.id], turn);
});

test("a chat deleted in another tab is not brought back unasked", async () => {
  const store = new Store(new MemoryBackend());
  const c = newConversation();
  exchange(c, "a", "A", 1);
  await store.save(c);
  await store.remove(c.id);
  assert.deepEqual(await store.all(), []);
  assert.equal(JSON.stringify(await store.backend.all()).includes("A"), false);
  await assert.rejects(store.save(c), DeletedElsewhere);
  assert.equal(await store.read(c.id), null);
  await store.save(c, { restore: true });
  assert.deepEqual(texts(await store.read(c.id)), ["a", "A"]);
});

test("marks of deletion are forgotten after a month, and chats are not", async () => {
  const store = new Store(new MemoryBackend());
  const [kept, gone] = [newConversation(), newConversation()];
  exchange(kept, "a", "A", 1);
  await store.save(kept);
  await store.remove(gone.id, 1000);
  await store.sweep(1000 + 29 * 86_400_000);
  assert.equal((await store.backend.all()).length, 2);
  await store.sweep(1000 + 31 * 86_400_000);
  assert.deepEqual((await store.backend.all()).map(({ id }) => id), [kept.id]);
});

test("search wants every word, in any case", async () => {
  const store = new Store(new MemoryBackend());
  for (const [question, answer] of [["Llamas and wool", "They hum."], ["Boats", "They float, llamas not."]]) {
    const c = newConversation();
    exchange(c, question, answer, 1);
    await store.save(c);
  }
  assert.deepEqual((await store.search("LLAMAS")).length, 2);
  assert.deepEqual((await store.search("llamas hum")).map(({ title }) => title), ["Llamas and wool"]);
  assert.deepEqual(await store.search("sheep"), []);
});

test("what is exported can be imported, here and elsewhere, and once is enough", async () => {
  const store = new Store(new MemoryBackend());
  const c = newConversation({ system: "Be brief." });
  const answer = exchange(c, "a", "A", 1);
  Object.assign(answer, { usage: { prompt: 3, completion: 1, cached: 0 }, seconds: { first: 0.1, writing: 0.2 }, model: "m" });
  await store.save(c);
  const text = await store.exported();
  const other = new Store(new MemoryBackend());
  assert.equal(await other.import(text), 1);
  assert.equal(await other.import(text), 1);
  assert.deepEqual(await other.all(), await store.all());
});

test("a file that is none of ours changes nothing, and says why", async () => {
  const store = new Store(new MemoryBackend());
  const c = newConversation();
  exchange(c, "a", "A", 1);
  const damaged = JSON.parse(JSON.stringify({ format: "llamita-chats", version: 1, conversations: [c, c] }));
  Object.values(damaged.conversations[1].turns)[0].role = "system";
  const files = ["{", "[]", "{}", '{"format":"llamita-chats","version":2,"conversations":[]}', JSON.stringify(damaged)];
  for (const file of files) await assert.rejects(store.import(file), Error, file);
  assert.deepEqual(await store.all(), []);
});

test("a hostile file makes no prototype and no endless walk", () => {
  const turn = { id: "__proto__", parent: "", role: "user", content: "x" };
  assert.equal(conversationFrom({ id: "a", turns: { x: turn } }), null);
  assert.equal(conversationFrom({ id: "__proto__", turns: {} }), null);
  assert.equal(conversationFrom({ id: "a b", turns: {} }), null);
  const ring = conversationFrom({
    id: "a",
    turns: { p: { id: "p", parent: "q", role: "user", content: "x" }, q: { id: "q", parent: "p", role: "assistant", content: "y" } },
  });
  assert.deepEqual(shownTurns(ring), []);
  const self = conversationFrom({ id: "a", turns: { p: { id: "", parent: "", role: "user", content: "x" } } });
  assert.equal(self, null);
});

test("a request says every setting that has a value", () => {
  const body = requestBody({ model: "m", messages: [], settings: { ...usualSettings(), seed: 7, stop: "END\n\\n\\n" } });
  assert.deepEqual(body, {
    model: "m", messages: [], stream: true, stream_options: { include_usage: true }, temperature: 0.7, top_p: 0.95,
    top_k: 50, min_p: 0, repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0, seed: 7, stop: ["END", "\n\n"],
  });
});

test("kept settings that make no sense are as usual", () => {
  assert.deepEqual(settingsFrom({ temperature: 99, top_k: 1.5, seed: "x", other: 1, top_p: 0.5 }), { ...usualSettings(), top_p: 0.5 });
  assert.deepEqual(settingsFrom(null), usualSettings());
  const [temperature] = CONTROLS;
  assert.equal(problemOf(temperature, 0), "");
  assert.match(problemOf(temperature, null), /needs a number/);
  assert.match(problemOf(temperature, -1), /from 0 to 2/);
  assert.deepEqual(stopStrings("\n\n"), []);
});

test("whole sentences are read out, and code is not", () => {
  const text = "It **hums**. It spi";
  const first = sentencesFrom(text, 0);
  assert.deepEqual(first, { said: "It hums .", to: 13 });
  assert.deepEqual(sentencesFrom(`${text}ts.`, first.to, true), { said: "It spits.", to: 22 });
  assert.deepEqual(sentencesFrom("See.\n```py\nx = 1\ny = 2\n", 0), { said: "See.", to: 5 });
  assert.equal(sentencesFrom("See.\n```py\nx = 1\n```\nThen.\n", 0).said, "See. Code. Then.");
  assert.equal(sentencesFrom("See.\n```py\nx = 1", 0, true).said, "See. Code.");
  assert.equal(sentencesFrom("half a sen", 0).said, "");
});
