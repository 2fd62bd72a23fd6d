// The blocks of Markdown: paragraphs, headings, lists, quotes, code, tables. Text in, a tree out.
//
// CommonMark and GitHub's tables, read for what models write: code is fenced and never merely
// indented, a nested list may be indented by two columns only, a heading is underlined by three
// signs at least, and HTML is text. There is no HTML in the tree and none is made of it: an element
// is a name out of a short list (render.js), attributes and children.

import { parseInline } from "./markdown_inline.js";

/** @typedef {import("./markdown_inline.js").Element} Element */
/** @typedef {Element & {from: number}} Block an element and where in the text it begins */
/** @typedef {{text: string, from: number}} Line */

// Deeper quotes and lists are read as text: real answers need five levels, an attack takes 10,000.
const DEEPEST = 24;

const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)])(?=[ \t]|$)/;
const UNDERLINE = /^ {0,3}(={3,}|-{3,})[ \t]*$/;
const TASK = /^\[([ xX])\][ \t]+/;

/**
 * @param {string} text
 * @param {{live?: boolean}} [options] live: more text follows, so that emphasis and code that are
 *   open at its end are shown as if they were closed.
 * @returns {Block[]}
 */
export function parseBlocks(text, options = {}) {
  let from = 0;
  const lines = text.split("\n").map((line) => {
    const at = from;
    from += line.length + 1;
    return { text: expanded(line.endsWith("\r") ? line.slice(0, -1) : line), from: at };
  });
  return new BlockParser(lines, 0, options.live === true).parse();
}

class BlockParser {
  /** @param {Line[]} lines @param {number} depth @param {boolean} live */
  constructor(lines, depth, live) {
    this.lines = lines;
    this.depth = depth;
    this.live = live;
    this.at = 0;
  }

  /** @returns {Block[]} */
  parse() {
    /** @type {Block[]} */
    const blocks = [];
    while (this.at < this.lines.length) {
      const { text, from } = this.lines[this.at];
      if (text.trim() === "") this.at += 1;
      else blocks.push({ ...this.block(text), from });
    }
    return blocks;
  }

  /** @param {string} text @returns {Element} */
  block(text) {
    const fence = openingFence(text);
    if (fence) return this.code(fence);
    if (HEADING.test(text)) return this.heading(text);
    if (RULE.test(text)) {
      this.at += 1;
      return { name: "hr" };
    }
    if (this.depth < DEEPEST) {
      if (QUOTE.test(text)) return this.quote();
      if (MARKER.test(text)) return this.list();
    }
    if (this.startsTable(this.at)) return this.table();
    return this.paragraph();
  }

  /** @param {string} text the text of the lines before `this.at` */
  inline(text) {
    return parseInline(text, { live: this.live && this.at >= this.lines.length });
  }

  /** @param {{mark: string, language: string, indent: number}} fence @returns {Element} */
  code(fence) {
    const close = new RegExp(`^ {0,3}\\${fence.mark[0]}{${fence.mark.length},}[ \\t]*$`);
    const body = [];
    for (this.at += 1; this.at < this.lines.length; this.at += 1) {
      const { text } = this.lines[this.at];
      if (close.test(text)) {
        this.at += 1;
        break;
      }
      body.push(stripped(text, fence.indent));
    }
    return { name: "code-block", attrs: { language: fence.language }, text: body.join("\n") };
  }

  /** @param {string} line @returns {Element} */
  heading(line) {
    const marks = line.trimStart();
    const level = marks.match(/^#+/)[0].length;
    let text = marks.slice(level).trim();
    let end = text.length;
    while (text[end - 1] === "#") end -= 1;
    if (end === 0 || /\s/.test(text[end - 1])) text = text.slice(0, end).trimEnd();
    this.at += 1;
    return { name: `h${level}`, children: this.inline(text) };
  }

  /** @returns {Element} */
  quote() {
    /** @type {Line[]} */
    const inner = [];
    let fence = null;
    let lazy = false;
    for (; this.at < this.lines.length; this.at += 1) {
      const { text, from } = this.lines[this.at];
      const mark = QUOTE.exec(text);
      if (!mark && !(lazy && this.lags(this.at))) break;
      const rest = mark ? text.slice(mark[0].length) : text;
      inner.push({ text: rest, from });
      if (openingFence(rest)) fence = fence ? null : rest;
      lazy = rest.trim() !== "" && !fence;
    }
    return { name: "blockquote", children: this.inside(inner) };
  }

  /** @param {Line[]} lines */
  inside(lines) {
    const live = this.live && this.at >= this.lines.length;
    return new BlockParser(lines, this.depth + 1, live).parse().map(({ from, ...block }) => block);
  }

  /** @returns {Element} */
  list() {
    const first = marker(this.lines[this.at].text);
    /** @type {Element[][]} */
    const items = [];
    let loose = false;
    let end = this.at;
    for (;;) {
      const here = this.at < this.lines.length ? marker(this.lines[this.at].text) : null;
      if (!here || here.kind !== first.kind || RULE.test(this.lines[this.at].text)) break;
      if (items.length && this.at > end) loose = true; // a blank line between two items
      const { lines, blank } = this.item(here);
      const children = this.inside(lines);
      loose ||= blank && children.length > 1;
      items.push(children);
      end = this.at;
      while (this.at < this.lines.length && this.lines[this.at].text.trim() === "") this.at += 1;
    }
    this.at = end;
    const children = items.map((item) => listItem(item, loose));
    if (!first.ordered) return { name: "ul", children };
    const start = String(first.number);
    return start === "1" ? { name: "ol", children } : { name: "ol", attrs: { start }, children };
  }

  /**
   * The lines of one item, without their indentation. blank: whether an empty line stood between.
   * @param {{indent: number, width: number}} here
   */
  item(here) {
    const { text, from } = this.lines[this.at];
    /** @type {Line[]} */
    const lines = [{ text: text.slice(here.width), from }];
    let blank = false;
    let fence = openingFence(lines[0].text);
    this.at += 1;
    for (let empty = 0; this.at + empty < this.lines.length; ) {
      const next = this.lines[this.at + empty];
      if (next.text.trim() === "") {
        // A marker with nothing after it and an empty line below is an empty item.
        if (lines.length === 1 && lines[0].text.trim() === "") break;
        empty += 1;
        continue;
      }
      const indent = indentOf(next.text);
      const nested = MARKER.test(next.text) && indent >= here.indent + 2;
      const lazy = empty === 0 && !fence && this.lags(this.at);
      if (indent < here.width && !nested && !lazy) break;
      if (empty > 0) blank = true;
      for (; empty > 0; empty -= 1, this.at += 1) {
        lines.push({ text: "", from: this.lines[this.at].from });
      }
      const rest = stripped(next.text, here.width);
      const edge = openingFence(rest);
      if (edge) fence = fence ? null : edge;
      lines.push({ text: rest, from: next.from });
      this.at += 1;
    }
    return { lines, blank };
  }

  /** Whether a line goes on with the paragraph before it. @param {number} at */
  continues(at) {
    const { text } = this.lines[at];
    if (text.trim() === "" || openingFence(text) || HEADING.test(text)) return false;
    if (RULE.test(text) || QUOTE.test(text) || this.startsTable(at)) return false;
    const mark = marker(text);
    // An empty item, or a number that happens to begin a line, does not break a paragraph.
    return !mark || mark.empty || (mark.ordered && mark.number !== 1);
  }

  /** Whether a line goes on with a paragraph in a quote or an item, without its mark. */
  lags(at) {
    return this.continues(at) && !MARKER.test(this.lines[at].text);
  }

  /** @returns {Element} */
  paragraph() {
    const lines = [this.lines[this.at].text.trimStart()];
    for (this.at += 1; this.at < this.lines.length; this.at += 1) {
      const { text } = this.lines[this.at];
      const under = UNDERLINE.exec(text);
      if (under) {
        this.at += 1;
        const name = under[1][0] === "=" ? "h1" : "h2";
        return { name, children: this.inline(lines.join("\n").trim()) };
      }
      if (!this.continues(this.at)) break;
      lines.push(text.trimStart());
    }
    return { name: "p", children: this.inline(lines.join("\n").trimEnd()) };
  }

  /** @param {number} at */
  startsTable(at) {
    const head = this.lines[at]?.text;
    const under = this.lines[at + 1]?.text;
    if (!head?.includes("|") || !under || !/^[ \t]*[|:-]/.test(under)) return false;
    const rule = cells(under);
    return rule.every((cell) => /^:?-+:?$/.test(cell)) && rule.length === cells(head).length;
  }

  /** @returns {Element} */
  table() {
    const head = cells(this.lines[this.at].text);
    const sides = cells(this.lines[this.at + 1].text).map(side);
    const rows = [];
    for (this.at += 2; this.at < this.lines.length; this.at += 1) {
      const { text } = this.lines[this.at];
      if (!text.includes("|") || !this.continues(this.at)) break;
      rows.push(cells(text));
    }
    const body = rows.map((row) => tableRow("td", sides.map((_, column) => row[column] ?? ""), sides));
    const children = [{ name: "thead", children: [tableRow("th", head, sides)] }];
    if (body.length) children.push({ name: "tbody", children: body });
    return { name: "table", children };
  }
}

/** @param {string} text */
function openingFence(text) {
  const match = FENCE.exec(text);
  if (!match || (match[1][0] === "`" && match[2].includes("`"))) return null;
  const language = match[2].trim().split(/\s/, 1)[0].replace(/^\{?\.?|\}$/g, "").slice(0, 32);
  return { mark: match[1], language, indent: indentOf(text) };
}

/** @param {string} text */
function marker(text) {
  const match = MARKER.exec(text);
  if (!match) return null;
  const [all, space, sign] = match;
  const rest = text.slice(all.length);
  const gap = indentOf(rest);
  const ordered = sign.length > 1;
  return {
    indent: space.length,
    // Five blanks or more after a marker belong to the text, as CommonMark has it.
    width: all.length + (gap >= 1 && gap <= 4 && rest.trim() !== "" ? gap : 1),
    kind: sign.at(-1),
    ordered,
    number: ordered ? Number.parseInt(sign, 10) : 0,
    empty: rest.trim() === "",
  };
}

/** @param {Element[]} blocks @param {boolean} loose @returns {Element} */
function listItem(blocks, loose) {
  /** @type {Record<string, string>} */
  const attrs = {};
  const [first] = blocks;
  if (first?.name === "p" && typeof first.children[0] === "string") {
    const task = TASK.exec(first.children[0]);
    if (task) {
      attrs.task = task[1] === " " ? "open" : "done";
      first.children[0] = first.children[0].slice(task[0].length);
    }
  }
  const children = loose
    ? blocks
    : blocks.flatMap((block) => (block.name === "p" ? block.children : [block]));
  return Object.keys(attrs).length ? { name: "li", attrs, children } : { name: "li", children };
}

/** @param {string} text a row of a table */
function cells(text) {
  let row = text.trim();
  if (row.startsWith("|")) row = row.slice(1);
  if (row.endsWith("|") && !row.endsWith("\\|")) row = row.slice(0, -1);
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/** @param {string} rule a cell such as ":--:" */
function side(rule) {
  const right = rule.endsWith(":");
  if (rule.startsWith(":")) return right ? "center" : "left";
  return right ? "right" : "";
}

/** @param {string} name @param {string[]} row @param {string[]} sides @returns {Element} */
function tableRow(name, row, sides) {
  const children = row.map((cell, column) => {
    const inside = parseInline(cell, { cell: true });
    const align = sides[column];
    return align ? { name, attrs: { align }, children: inside } : { name, children: inside };
  });
  return { name: "tr", children };
}

/** Tabs before the text as blanks, to columns of four. @param {string} line */
function expanded(line) {
  const lead = /^[ \t]*/.exec(line)[0];
  if (!lead.includes("\t")) return line;
  let width = 0;
  for (const sign of lead) width += sign === "\t" ? 4 - (width % 4) : 1;
  return " ".repeat(width) + line.slice(lead.length);
}

/** @param {string} text */
function indentOf(text) {
  return text.length - text.trimStart().length;
}

/** A line without up to `width` blanks before it. @param {string} text @param {number} width */
function stripped(text, width) {
  return text.slice(Math.min(width, indentOf(text)));
}
