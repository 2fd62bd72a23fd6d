// The tree of Markdown. The HTML expected is CommonMark 0.31's and GitHub's for the same text, but
// for what markdown.js says it does otherwise.

import assert from "node:assert/strict";
import { test } from "node:test";

import { safeAddress } from "./addresses.js";
import { parseBlocks } from "./markdown.js";

/** @param {any} tree */
function html(tree) {
  if (typeof tree === "string") return tree.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const { name, attrs = {}, children = [], text } = tree;
  const written = Object.entries(attrs).map(([key, value]) => ` ${key}="${value}"`).join("");
  return `<${name}${written}>${text === undefined ? children.map(html).join("") : html(text)}</${name}>`;
}

/** @param {string} text */
function rendered(text) {
  return parseBlocks(text).map(html).join("").replace(/<(br|hr)><\/\1>/g, "<$1>");
}

/** @param {Record<string, string>} cases */
function check(cases) {
  for (const [text, expected] of Object.entries(cases)) assert.equal(rendered(text), expected, JSON.stringify(text));
}

test("emphasis, code and links in a line", () => check({
  "*a* _b_ **c** __d__ ***e*** ~~f~~": "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> <em><strong>e</strong></em> <del>f</del></p>",
  "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
  "**bold *both* bold**": "<p><strong>bold <em>both</em> bold</strong></p>",
  "*foo**bar**baz*": "<p><em>foo<strong>bar</strong>baz</em></p>",
  "**foo*": "<p>*<em>foo</em></p>",
  "*foo**": "<p><em>foo</em>*</p>",
  "a `b *c* <d>` e": "<p>a <code>b *c* &lt;d></code> e</p>",
  "`` a ` b `` and ` unclosed": "<p><code>a ` b</code> and ` unclosed</p>",
  "[a *b*](https://c.org/d_(e)_f \"t\").": '<p><a href="https://c.org/d_(e)_f">a <em>b</em></a>.</p>',
  "<https://a.org/?b=c&d> and mail <mailto:a@b.org>": '<p><a href="https://a.org/?b=c&d">https://a.org/?b=c&amp;d</a> and mail <a href="mailto:a@b.org">a@b.org</a></p>',
  "see https://a.org/b(c). Or (https://a.org/).": '<p>see <a href="https://a.org/b(c)">https://a.org/b(c)</a>. Or (<a href="https://a.org/">https://a.org/</a>).</p>',
  "\\*no\\* &lt;b&gt; &#65; AT&T": "<p>*no* &lt;b> A AT&amp;T</p>",
  "one\ntwo  \nthree": "<p>one<br>two<br>three</p>",
  "![a picture](https://a.org/b.png)": '<p><a href="https://a.org/b.png">a picture</a></p>',
  "[x] and [y][z] and ]": "<p>[x] and [y][z] and ]</p>",
  "[![a](https://b.org/c.png)](https://d.org)": '<p><a href="https://d.org/">a</a></p>',
  "[a [b](https://b.org) c](https://c.org)": '<p>[a <a href="https://b.org/">b</a> c](<a href="https://c.org/">https://c.org</a>)</p>',
}));

test("blocks", () => check({
  "# A #\n## B\ntext\n#no": "<h1>A</h1><h2>B</h2><p>text<br>#no</p>",
  "A\n===\nB\n---\n\n---\n***": "<h1>A</h1><h2>B</h2><hr><hr>",
  "a\n\nb": "<p>a</p><p>b</p>",
  "> a\nb\n> > c\n\nd": "<blockquote><p>a<br>b</p><blockquote><p>c</p></blockquote></blockquote><p>d</p>",
  "> ```\n> a\nb": '<blockquote><code-block language="">a</code-block></blockquote><p>b</p>',
  "```py\n# a\n\n  b\n```\nc": '<code-block language="py"># a\n\n  b</code-block><p>c</p>',
  "~~~\n```\n~~~": '<code-block language="">```</code-block>',
  "````md\n```py\nx\n```\n````\nafter": '<code-block language="md">```py\nx\n```</code-block><p>after</p>',
  "```\nnever closed": '<code-block language="">never closed</code-block>',
  "a\r\nb\r\n\r\n- c\r\n": "<p>a<br>b</p><ul><li>c</li></ul>",
  "": "",
}));

test("lists", () => check({
  "- a\n- b": "<ul><li>a</li><li>b</li></ul>",
  "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
  "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
  "1. a\n   - b\n   - c\n2. d\n3. e": "<ol><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li><li>e</li></ol>",
  "1. a\n  - b\n  - c\n2. d": "<ol><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ol>",
  "- a\n    - b\n        - c\n- d": "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>",
  "- a\nlazy\n- b\n\nend": "<ul><li>a<br>lazy</li><li>b</li></ul><p>end</p>",
  "1. a\n\n   ```sh\n   b\n\n   c\n   ```\n\n2. d": '<ol><li><p>a</p><code-block language="sh">b\n\nc</code-block></li><li><p>d</p></li></ol>',
  "- [x] done\n- [ ] open": '<ul><li task="done">done</li><li task="open">open</li></ul>',
  "- a\n* b": "<ul><li>a</li></ul><ul><li>b</li></ul>",
  "In 1984\n1984. was a year": "<p>In 1984<br>1984. was a year</p>",
  "text\n- item": "<p>text</p><ul><li>item</li></ul>",
  "-\n\nb": "<ul><li></li></ul><p>b</p>",
  "- a\n  > b": "<ul><li>a<blockquote><p>b</p></blockquote></li></ul>",
  "- \ta": "<ul><li>a</li></ul>",
}));

test("tables", () => {
  const head = '<thead><tr><th align="left">a</th><th align="right">b</th></tr></thead>';
  const row = (a, b) => `<tr><td align="left">${a}</td><td align="right">${b}</td></tr>`;
  check({
    "| a | b |\n|:--|--:|\n| 1 | `x\\|y` |\n| 2 |\n\nend": `<table>${head}<tbody>${row("1", "<code>x|y</code>")}${row("2", "")}</tbody></table><p>end</p>`,
    "a | b\n:-- | --:\n1 | 2 | 3\ntext": `<table>${head}<tbody>${row("1", "2")}</tbody></table><p>text</p>`,
    "| a | b |\n|:--|--:|\n| 1<br>2 | <b> |": `<table>${head}<tbody>${row("1<br>2", "&lt;b>")}</tbody></table>`,
    "a | b\n--": "<p>a | b<br>--</p>",
  });
});

const HOSTILE = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "<svg/onload=alert(1)>",
  "<a href=\"javascript:alert(1)\">x</a>",
  "[x](javascript:alert(1))",
  "[x](JaVaScRiPt:alert(1))",
  "[x](java\tscript:alert(1))",
  "[x](<java\nscript:alert(1)>)",
  "[x](&#106;avascript:alert(1))",
  "[x](\u0001javascript:alert(1))",
  "[x](data:text/html;base64,PHNjcmlwdD4=)",
  "![x](data:image/svg+xml,<svg onload=alert(1)>)",
  "[x](vbscript:msgbox(1))",
  "[x](file:///etc/passwd)",
  "[x](//evil.example)",
  "[x](/relative)",
  "<javascript:alert(1)>",
  "<data:text/html,hi>",
  "```html\n<script>alert(1)</script>\n```",
  "````\n```\n<script>\n````",
  "```<script>alert(1)</script>\nx\n```",
  "[x](https://a.org\" onmouseover=\"alert(1))",
  "| <script> |\n|---|\n| <img onerror=x> |",
  "# <iframe src=javascript:alert(1)>",
  "[<img src=x onerror=alert(1)>](https://a.org)",
  "[a](https://b.org/\\\" onclick=\\\"alert(1))",
];
const NAMES = /^(p|h[1-6]|ul|ol|li|blockquote|hr|br|em|strong|del|code|a|table|thead|tbody|tr|th|td|code-block)$/;
const ATTRIBUTES = { href: /^(https?:\/\/|mailto:)/, start: /^\d+$/, align: /^(left|right|center)$/, task: /^(open|done)$/, language: /^\S{0,32}$/ };

function checkTree(tree) {
  if (typeof tree === "string") return;
  assert.match(tree.name, NAMES);
  for (const [key, value] of Object.entries(tree.attrs ?? {})) assert.match(value, ATTRIBUTES[key] ?? /(?!)/, `${tree.name} ${key}`);
  for (const child of tree.children ?? []) checkTree(child);
}

test("hostile text makes no element or attribute that is not listed", () => {
  for (const text of HOSTILE) {
    for (const around of [text, `> - ${text}`, `**${text}**`, `\n\n1. a\n   ${text}`]) {
      for (let end = 0; end <= around.length; end += 1) parseBlocks(around.slice(0, end), { live: true }).forEach(checkTree);
    }
  }
});

test("HTML is text, word for word", () => {
  for (const text of HOSTILE.slice(0, 3)) assert.deepEqual(parseBlocks(text), [{ name: "p", children: [text], from: 0 }]);
});

test("only http, https and mailto are followed", () => {
  for (const bad of ["javascript:alert(1)", "java\nscript:x", " \tjavascript:x", "data:text/html,x", "//a.org", "a", "", "http:", "ftp://a.org", "blob:https://a.org/x", "https:a"]) {
    assert.equal(safeAddress(bad), null, bad);
  }
  assert.equal(safeAddress("HTTPS://A.org/b c"), "https://a.org/bc");
  assert.equal(safeAddress("mailto:a@b.org"), "mailto:a@b.org");
});

test("time grows with the text, not with its square", () => {
  const patterns = ["*a", "_a ", "[", "[a](", "![", "`", "` ``", "<", "> ", "- ", "&", "**a*", "~~", "|a", "(((", "https://", "a\n", "- a\n", "> a\n", "| a |\n|--|\n", "```\n", "#", "*_", "1. ", "\t", "[a](b", "](", " ", "***a ", "* ", "# #", "`` ", "\\", "<br", "[a](b)", "[[a](https://b.org)"];
  for (const pattern of patterns) {
    const text = pattern.repeat(Math.ceil(30_000 / pattern.length));
    const began = performance.now();
    parseBlocks(text, { live: true });
    const took = performance.now() - began;
    assert.ok(took < 1500, `${JSON.stringify(pattern)} took ${took.toFixed(0)} ms`);
  }
});

test("what is open at the end of a growing text is shown as if closed", () => {
  const live = (text) => parseBlocks(text, { live: true }).map(html).join("");
  assert.equal(live("a **b"), "<p>a <strong>b</strong></p>");
  assert.equal(live("a `b"), "<p>a <code>b</code></p>");
  assert.equal(live("a **"), "<p>a </p>");
  assert.equal(live("a **b\n\nc"), "<p>a **b</p><p>c</p>");
  assert.equal(live("- *a\n- *b"), "<ul><li>*a</li><li><em>b</em></li></ul>");
});
