import assert from "node:assert/strict";
import { test } from "node:test";

import { counts, drawn, install } from "./dom_stub.js";

const place = install();
const { createNode, LiveMarkdown } = await import("./render.js");

const TEXTS = [
  "# A\n\ntext *with **much*** `in` it\nand more\n\n- a\n- b\n  - c\n\n    d\n\n1. x\n2. y\n\nend",
  "para\n#hashtag\n\npara\n***bold** it*\n\npara\n```inline```\n\npara\n- [x] item\n- [ ] item\n",
  "```js\nlet a = `b`;\n\n\nc\n```\n| a | b |\n|---|:-:|\n| 1 | 2 |\n| 3 | **4** |\ntext\n\n> q\nlazy\n> - r\n\nlast",
  "Title\n===\nother\n---\n1. a\n\n   ````\n   ```\n   ````\n3. b\nhttps://a.org/b\n\\* [l](https://x.org) <br> &amp;\n",
  "a\n\n\n\n> b\n\n\nc\r\nd\r\n\r\n---\n\ne 🦙 f",
];

function whole(text) {
  const fresh = document.createElement("div");
  new LiveMarkdown(fresh).set(text);
  return drawn(fresh);
}

test("a text that came in pieces looks as one that came at once, whatever the pieces", () => {
  for (const text of TEXTS) {
    for (const step of [1, 2, 3, 7, 50]) {
      const live = new LiveMarkdown(place);
      place.replaceChildren();
      for (let end = step; end < text.length; end += step) live.set(text.slice(0, end), true);
      live.set(text);
      assert.equal(drawn(place), whole(text));
    }
  }
});

test("without a look ahead, every beginning of a text looks as if it were all", () => {
  for (const text of TEXTS) {
    const live = new LiveMarkdown(place);
    place.replaceChildren();
    for (let end = 0; end <= text.length; end += 1) {
      live.set(text.slice(0, end));
      assert.equal(drawn(place), whole(text.slice(0, end)));
    }
  }
});

test("another text starts afresh", () => {
  const live = new LiveMarkdown(place);
  place.replaceChildren();
  live.set("one\n\ntwo\n\nthree");
  live.set("one\n\nother");
  assert.equal(drawn(place), whole("one\n\nother"));
});

test("what stands is left alone while more is written", () => {
  const live = new LiveMarkdown(place);
  place.replaceChildren();
  const before = "first\n\n- a\n- b\n\n```py\nx = 1\n";
  live.set(before, true);
  const kept = [...place.childNodes];
  counts.made = 0;
  for (let size = 1; size <= 200; size += 1) live.set(before + "y".repeat(size), true);
  assert.deepEqual(place.childNodes, kept);
  assert.equal(counts.made, 0);
});

test("the work for a long answer grows with its length", () => {
  const time = (blocks) => {
    const text = "Some *words* in a paragraph that goes on for a while.\n\n".repeat(blocks);
    const live = new LiveMarkdown(document.createElement("div"));
    const began = performance.now();
    for (let end = 0; end < text.length; end += 16) live.set(text.slice(0, end), true);
    return performance.now() - began;
  };
  time(100);
  const [short, long] = [time(100), time(800)];
  // Eight times the text; parsing all of it each time would take 64 times as long.
  assert.ok(long < short * 24 + 200, `${short.toFixed(0)} ms and ${long.toFixed(0)} ms`);
});

test("no element is made by a name that is not listed", () => {
  assert.equal(createNode({ name: "script", text: "alert(1)" }).data, "alert(1)");
  assert.equal(createNode({ name: "img", attrs: { src: "x" } }).data, "");
});

test("a link is checked once more, and opens without a way back", () => {
  const bad = createNode({ name: "a", attrs: { href: "javascript:alert(1)" }, children: ["x"] });
  assert.equal(bad.href, undefined);
  const good = createNode({ name: "a", attrs: { href: "https://a.org/" }, children: ["x"] });
  assert.deepEqual([good.href, good.rel, good.target], ["https://a.org/", "noopener noreferrer", "_blank"]);
});
