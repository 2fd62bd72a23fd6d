// From the tree of markdown.js to the page, touching only what has changed.
//
// Elements are made by name out of ELEMENTS and text is set as text: whatever an answer holds, it
// makes no script, style, image or attribute beyond those below.

import { safeAddress } from "./addresses.js";
import { copyButton, h } from "./dom.js";
import { parseBlocks } from "./markdown.js";

/** @typedef {import("./markdown_inline.js").Tree} Tree */

const ELEMENTS = new Set([
  "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "br", "em",
  "strong", "del", "code", "a", "table", "thead", "tbody", "tr", "th", "td", "code-block",
]);
// A line that may yet become a heading, a list or a fence, so that it is not shown as text first.
const UNDECIDED = /^[ \t]*(?:[#>*+~`=|_-]+|\d{1,9}[.)]?)[ \t]*$/;

/** Markdown that grows inside an element. */
export class LiveMarkdown {
  #text = "";
  #base = 0;
  #settled = 0;
  /** @type {Tree[]} */
  #tail = [];

  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
  }

  /**
   * Show a text. Where it goes on from the last one, only what follows the last whole block is
   * parsed, and only the nodes that differ are touched.
   * @param {string} text @param {boolean} [live] whether more may follow
   */
  set(text, live = false) {
    // Equality compares memory; startsWith goes character by character.
    if (text.slice(0, this.#text.length) !== this.#text) this.#restart();
    this.#text = text;
    const rest = text.slice(this.#base);
    const lastLine = rest.lastIndexOf("\n") + 1;
    const shown = live && UNDECIDED.test(rest.slice(lastLine)) ? rest.slice(0, lastLine) : rest;
    const blocks = parseBlocks(shown, { live });
    patchChildren(this.place, this.#tail, blocks, this.#settled);
    this.#tail = blocks;
    this.#settle(lastLine);
  }

  #restart() {
    this.place.replaceChildren();
    this.#base = 0;
    this.#settled = 0;
    this.#tail = [];
  }

  /** What follows whole lines can change the last block that began in them, and none before it. */
  #settle(lastLine) {
    const open = this.#tail.findLastIndex((block) => block.from < lastLine);
    if (open <= 0) return;
    const shift = this.#tail[open].from;
    this.#base += shift;
    this.#settled += open;
    this.#tail = this.#tail.slice(open).map((block) => ({ ...block, from: block.from - shift }));
  }
}

/** @param {Tree} tree @returns {Node} */
export function createNode(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  if (!ELEMENTS.has(tree.name)) return document.createTextNode(tree.text ?? "");
  if (tree.name === "code-block") return createCodeBlock(tree);
  if (tree.name === "table") {
    const wide = { class: "table-scroll", tabIndex: 0, role: "region", "aria-label": "Table" };
    return h("div", wide, createPlain(tree));
  }
  return createPlain(tree);
}

/** @param {import("./markdown_inline.js").Element} tree */
function createPlain(tree) {
  const element = document.createElement(tree.name);
  const { href, start, align, task } = tree.attrs ?? {};
  const address = href && safeAddress(href);
  if (address && element instanceof HTMLAnchorElement) {
    element.href = address;
    element.rel = "noopener noreferrer";
    element.target = "_blank";
    element.title = address;
  }
  if (start && element instanceof HTMLOListElement) element.start = Number(start);
  if (align) element.className = `align-${align}`;
  if (task) {
    element.className = "task";
    const done = task === "done";
    const label = done ? "done" : "to do";
    element.append(h("input", { type: "checkbox", disabled: true, checked: done, "aria-label": label }));
  }
  if (tree.text !== undefined) element.append(tree.text);
  for (const child of tree.children ?? []) element.append(createNode(child));
  return element;
}

/** @param {import("./markdown_inline.js").Element} tree */
function createCodeBlock(tree) {
  const code = h("code", {}, tree.text);
  const language = tree.attrs.language;
  const label = h("span", { class: "language" }, language || "text");
  const button = copyButton("Copy code", () => code.textContent);
  return h(
    "figure",
    { class: "code-block" },
    h("figcaption", {}, label, button),
    h("pre", { tabIndex: 0, role: "region", "aria-label": language ? `Code, ${language}` : "Code" }, code),
  );
}

/**
 * Make the children of `parent` from index `first` on, which show `old`, show `next`.
 * @param {Node} parent @param {Tree[]} old @param {Tree[]} next @param {number} first
 */
export function patchChildren(parent, old, next, first = 0) {
  const shared = Math.min(old.length, next.length);
  for (let at = 0; at < shared; at += 1) {
    patch(parent.childNodes[first + at], old[at], next[at]);
  }
  for (let at = old.length; at > shared; at -= 1) parent.lastChild.remove();
  for (const tree of next.slice(shared)) parent.appendChild(createNode(tree));
}

/** @param {any} node @param {Tree} old @param {Tree} next */
function patch(node, old, next) {
  if (typeof old === "string" && typeof next === "string") {
    if (old !== next) setData(node, old, next);
  } else if (typeof old === "string" || typeof next === "string" || !alike(old, next)) {
    node.replaceWith(createNode(next));
  } else if (next.name === "code-block") {
    if (old.text !== next.text) patchText(node.querySelector("code"), old.text, next.text);
  } else if (next.text !== undefined) {
    if (old.text !== next.text) patchText(node, old.text, next.text);
  } else {
    const inside = next.name === "table" ? node.firstChild : node;
    patchChildren(inside, old.children ?? [], next.children ?? [], next.attrs?.task ? 1 : 0);
  }
}

/** @param {Element} element @param {string} old @param {string} next */
function patchText(element, old, next) {
  if (element.firstChild) setData(element.firstChild, old, next);
  else element.append(next);
}

/** @param {Text} node @param {string} old @param {string} next */
function setData(node, old, next) {
  // Appending keeps a reader's selection.
  if (next.startsWith(old)) node.appendData(next.slice(old.length));
  else node.data = next;
}

/** Whether two elements differ in what stands in them alone. */
function alike(old, next) {
  if (old.name !== next.name) return false;
  if ((old.text === undefined) !== (next.text === undefined)) return false;
  const before = old.attrs ?? {};
  const after = next.attrs ?? {};
  const names = Object.keys(after);
  return names.length === Object.keys(before).length && names.every((name) => before[name] === after[name]);
}
