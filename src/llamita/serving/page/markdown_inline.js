// What stands inside a line of Markdown: emphasis, code, links. Text in, a tree out; no DOM.
//
// The rules are CommonMark's but for these: a line end is a line break (as the model wrote it), raw
// HTML is text, an image is a link to it, and only http, https and mailto are links.

import { destination, safeAddress, trimmedUrl } from "./addresses.js";

/** @typedef {{name: string, attrs?: Record<string, string>, children?: Tree[], text?: string}} Element */
/** @typedef {string | Element} Tree */

const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u;
const PLAIN = /[^\\`<&*_~[\]!\nh]+/y;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(amp|lt|gt|quot|apos|nbsp|copy|hellip|mdash|ndash));/y;
const NAMED = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©",
  hellip: "…", mdash: "—", ndash: "–",
};
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2048})>/iy;
const BARE_URL = /https?:\/\/[^\s<>`]{1,2048}/y;

/**
 * @param {string} text
 * @param {{live?: boolean, cell?: boolean}} [options] live: the text is still being written, so
 *   that what is open at its end is shown as if it were closed; cell: of a table, where `<br>` is
 *   the only way to break a line.
 * @returns {Tree[]}
 */
export function parseInline(text, options = {}) {
  return new InlineParser(text, options).parse();
}

class InlineParser {
  /** @param {string} text @param {{live?: boolean, cell?: boolean}} options */
  constructor(text, options) {
    this.text = text;
    this.options = options;
    this.at = 0;
    /** @type {any[]} trees, and openers that have found no closer yet */
    this.out = [];
    /** @type {any[]} the openers among them, in order */
    this.openers = [];
    /** @type {Set<number>} lengths of backtick runs that nothing closes any more */
    this.unclosed = new Set();
    /** @type {Map<string, number>} per kind of closer: openers below this depth do not match */
    this.bottoms = new Map();
  }

  parse() {
    const { text } = this;
    while (this.at < text.length) {
      PLAIN.lastIndex = this.at;
      const plain = PLAIN.exec(text);
      if (plain) {
        this.out.push(plain[0]);
        this.at = PLAIN.lastIndex;
      } else {
        this.special(text[this.at]);
      }
    }
    if (this.options.live) this.closeAll();
    return tidy(this.out.map((item) => (item.mark ? item.mark : item)));
  }

  /** @param {string} sign */
  special(sign) {
    if (sign === "\\") this.escape();
    else if (sign === "`") this.code();
    else if (sign === "\n") this.lineBreak();
    else if (sign === "<") this.angle();
    else if (sign === "&") this.entity();
    else if (sign === "h") this.bareUrl();
    else if (sign === "[") this.openBracket("[");
    else if (sign === "!" && this.text[this.at + 1] === "[") this.openBracket("![");
    else if (sign === "]") this.closeBracket();
    else if (sign === "*" || sign === "_" || sign === "~") this.emphasis(sign);
    else this.literal(sign);
  }

  /** @param {string} text */
  literal(text) {
    this.out.push(text);
    this.at += text.length;
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") {
      this.at += 1;
      this.lineBreak();
    } else if (next !== undefined && /[!-/:-@[-`{-~]/.test(next)) {
      this.out.push(next);
      this.at += 2;
    } else {
      this.literal("\\");
    }
  }

  lineBreak() {
    const last = this.out.length - 1;
    if (typeof this.out[last] === "string") this.out[last] = this.out[last].trimEnd();
    this.out.push({ name: "br" });
    this.at += 1;
    while (this.text[this.at] === " ") this.at += 1;
  }

  code() {
    const { text } = this;
    let end = this.at;
    while (text[end] === "`") end += 1;
    const length = end - this.at;
    let close = this.unclosed.has(length) ? -1 : closingBackticks(text, end, length);
    if (close < 0) {
      this.unclosed.add(length);
      if (!this.options.live || length > 2 || end === text.length) {
        this.literal(text.slice(this.at, end));
        return;
      }
      close = text.length;
    }
    let inside = text.slice(end, close).replace(/\n/g, " ");
    const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim() !== "";
    if (padded) inside = inside.slice(1, -1);
    this.out.push({ name: "code", text: inside });
    this.at = Math.min(close + length, text.length);
  }

  angle() {
    AUTOLINK.lastIndex = this.at;
    const link = AUTOLINK.exec(this.text);
    const address = link && safeAddress(link[1]);
    if (link && address) {
      this.out.push(anchor(address, [link[1].replace(/^mailto:/i, "")]));
      this.at = AUTOLINK.lastIndex;
      return;
    }
    const breaks = this.options.cell && /^<br ?\/?>/i.exec(this.text.slice(this.at, this.at + 6));
    if (breaks) {
      this.out.push({ name: "br" });
      this.at += breaks[0].length;
    } else {
      this.literal("<");
    }
  }

  entity() {
    ENTITY.lastIndex = this.at;
    const match = ENTITY.exec(this.text);
    if (!match) return this.literal("&");
    const [all, decimal, hex, name] = match;
    const code = decimal ? Number(decimal) : hex ? parseInt(hex, 16) : -1;
    const valid = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
    this.out.push(name ? NAMED[name] : valid ? String.fromCodePoint(code) : "\ufffd");
    this.at += all.length;
  }

  bareUrl() {
    BARE_URL.lastIndex = this.at;
    const before = this.text[this.at - 1] ?? " ";
    const match = /[\p{L}\p{N}_]/u.test(before) ? null : BARE_URL.exec(this.text);
    const written = match ? trimmedUrl(match[0]) : "";
    const address = written && safeAddress(written);
    if (!address) return this.literal("h");
    this.out.push(anchor(address, [written]));
    this.at += written.length;
  }

  /** @param {string} mark */
  openBracket(mark) {
    const opener = { mark, place: this.out.length, bracket: true, from: this.at + mark.length };
    this.out.push(opener);
    this.openers.push(opener);
    this.at += mark.length;
  }

  closeBracket() {
    const depth = this.openers.findLastIndex((opener) => opener.bracket);
    const opener = this.openers[depth];
    const target = opener && destination(this.text, this.at + 1);
    if (!opener || !target) {
      if (opener) {
        // What is no link now will not become one: the bracket is a character.
        this.out[opener.place] = opener.mark;
        this.openers.splice(depth, 1);
        this.lowerBottoms(depth);
      }
      return this.literal("]");
    }
    const inside = this.cut(depth);
    const address = safeAddress(target.address);
    if (address) {
      // A link's text may hold a picture, but the link around a link is text.
      if (opener.mark === "[") this.forgetBrackets();
      this.out.push(anchor(address, unlinked(inside)));
    } else this.out.push(opener.mark, ...inside, this.text.slice(this.at, target.end));
    this.at = target.end;
  }

  forgetBrackets() {
    for (const opener of this.openers) {
      if (opener.bracket) this.out[opener.place] = opener.mark;
    }
    this.openers = this.openers.filter((opener) => !opener.bracket);
    this.bottoms.clear();
  }

  /** @param {string} sign */
  emphasis(sign) {
    const { text } = this;
    let end = this.at;
    while (text[end] === sign) end += 1;
    let length = end - this.at;
    if (sign === "~" && length !== 2) return this.literal(text.slice(this.at, end));
    const { opens, closes } = flanks(text, this.at, end, sign);
    this.at = end;
    const run = length;
    while (closes && length > 0) {
      const depth = this.matching(sign, run, opens);
      if (depth < 0) break;
      length -= this.wrap(depth, length);
    }
    if (length === 0) return;
    const mark = sign.repeat(length);
    if (!opens) {
      const undecided = this.options.live && end === text.length;
      if (!undecided) this.out.push(mark);
      return;
    }
    const opener = { mark, sign, run, closes, place: this.out.length };
    this.out.push(opener);
    this.openers.push(opener);
  }

  /**
   * The nearest opener that a closing run ends, or -1.
   * @param {string} sign @param {number} run @param {boolean} opens
   */
  matching(sign, run, opens) {
    const kind = `${sign}${run % 3}${opens}`;
    const bottom = this.bottoms.get(kind) ?? 0;
    for (let depth = this.openers.length - 1; depth >= bottom; depth -= 1) {
      const opener = this.openers[depth];
      if (opener.sign !== sign) continue;
      // CommonMark's rule of three: "***a** b*" and its like.
      const odd = (opens || opener.closes) && (opener.run + run) % 3 === 0;
      if (!odd || (opener.run % 3 === 0 && run % 3 === 0)) return depth;
    }
    this.bottoms.set(kind, this.openers.length);
    return -1;
  }

  /**
   * Put what stands after an opener into an element; gives the number of signs used.
   * @param {number} depth @param {number} length
   */
  wrap(depth, length) {
    const opener = this.openers[depth];
    const used = Math.min(2, length, opener.mark.length);
    const inside = this.cut(depth);
    const name = opener.sign === "~" ? "del" : used === 2 ? "strong" : "em";
    opener.mark = opener.mark.slice(used);
    if (opener.mark) {
      opener.place = this.out.length;
      this.out.push(opener);
      this.openers.push(opener);
    }
    this.out.push({ name, children: tidy(inside) });
    return used;
  }

  /** Take an opener and all after it off; gives what stood after it. @param {number} depth */
  cut(depth) {
    const opener = this.openers[depth];
    const inside = this.out.splice(opener.place).slice(1);
    this.openers.length = depth;
    this.lowerBottoms(depth);
    return inside.map((item) => item.mark ?? item);
  }

  /** @param {number} depth */
  lowerBottoms(depth) {
    for (const [kind, bottom] of this.bottoms) {
      if (bottom > depth) this.bottoms.set(kind, depth);
    }
  }

  /** Show open emphasis at the end of a text that goes on as if it were closed. */
  closeAll() {
    for (let depth = this.openers.length - 1; depth >= 0; depth -= 1) {
      const opener = this.openers[depth];
      if (opener.bracket) continue;
      if (opener.place === this.out.length - 1) {
        this.cut(depth); // nothing stands after it yet
        continue;
      }
      while (this.openers[depth] === opener) this.wrap(depth, 2);
    }
  }
}

/** @param {string} text @param {number} from @param {number} length */
function closingBackticks(text, from, length) {
  let at = text.indexOf("`", from);
  while (at >= 0) {
    let end = at;
    while (text[end] === "`") end += 1;
    if (end - at === length) return at;
    at = text.indexOf("`", end);
  }
  return -1;
}

/**
 * Whether a run of signs can begin or end emphasis, by what stands around it.
 * @param {string} text @param {number} start @param {number} end @param {string} sign
 */
function flanks(text, start, end, sign) {
  const before = start === 0 ? " " : text[start - 1];
  const after = end >= text.length ? " " : text[end];
  const spaceBefore = /\s/.test(before);
  const spaceAfter = /\s/.test(after);
  const signBefore = PUNCTUATION.test(before);
  const signAfter = PUNCTUATION.test(after);
  const left = !spaceAfter && (!signAfter || spaceBefore || signBefore);
  const right = !spaceBefore && (!signBefore || spaceAfter || signAfter);
  if (sign !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || signBefore), closes: right && (!left || signAfter) };
}

/** @param {string} href @param {Tree[]} children @returns {Element} */
function anchor(href, children) {
  return { name: "a", attrs: { href }, children: tidy(children) };
}

/** Links do not stand in links. @param {Tree[]} trees @returns {Tree[]} */
function unlinked(trees) {
  return trees.flatMap((tree) => {
    if (typeof tree === "string" || !tree.children) return [tree];
    const children = unlinked(tree.children);
    return tree.name === "a" ? children : [{ ...tree, children }];
  });
}

/** Join neighbouring texts. @param {Tree[]} trees @returns {Tree[]} */
function tidy(trees) {
  /** @type {Tree[]} */
  const joined = [];
  for (const tree of trees) {
    const last = joined.length - 1;
    if (typeof tree === "string" && typeof joined[last] === "string") joined[last] += tree;
    else if (tree !== "") joined.push(tree);
  }
  return joined;
}
