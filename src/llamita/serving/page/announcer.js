// What a screen reader is told: whole sentences of an answer, a few at a time, and not each token.

// A sentence's end, or a line's; the spaces after it show that it is one.
const END = /[.!?…:;]["'”’)\]*_]*\s|\n/g;
const PAUSE = 2500;

/**
 * The whole sentences of a text from a place on, without Markdown's signs, and where they end.
 * Code is not read out.
 * @param {string} text @param {number} from @param {boolean} [done] whether the text is complete
 */
export function sentencesFrom(text, from, done = false) {
  let to = from;
  if (done) to = text.length;
  else for (const match of text.slice(from).matchAll(END)) to = from + match.index + match[0].length;
  // An open block of code is left until it has ended.
  const fence = openFence(text.slice(0, to));
  if (!done && fence >= 0) to = Math.max(from, fence);
  const whole = text.slice(from, to).replace(/^ {0,3}(`{3,}|~{3,}).*\n[^]*?(?:^ {0,3}\1.*$|(?![^]))/gm, " Code. ");
  const said = whole
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/^[ \t]*(?:#{1,6}|[-*+>]|\|)[ \t]/gm, "")
    .replace(/[*_`|]+/g, " ")
    .replace(/\s+/g, " ")
    .trim();
  return { said, to };
}

/** Where a fence stands that nothing closes, or -1. @param {string} text */
function openFence(text) {
  let open = -1;
  let mark = "";
  for (const match of text.matchAll(/^ {0,3}(`{3,}|~{3,})/gm)) {
    if (open < 0) [open, mark] = [match.index, match[1]];
    else if (match[1].startsWith(mark)) open = -1;
  }
  return open;
}

export class Announcer {
  #at = 0;
  #last = 0;

  /** @param {HTMLElement} region with aria-live="polite" */
  constructor(region) {
    this.region = region;
  }

  /** @param {string} text */
  say(text) {
    const line = document.createElement("p");
    line.textContent = text;
    this.region.append(line);
    while (this.region.childElementCount > 6) this.region.firstElementChild.remove();
  }

  /** A new answer begins. */
  begin() {
    this.#at = 0;
    this.#last = Date.now();
    this.say("The model is answering.");
  }

  /** @param {string} text of the answer so far @param {boolean} [done] */
  follow(text, done = false) {
    if (!done && Date.now() - this.#last < PAUSE) return;
    const { said, to } = sentencesFrom(text, this.#at, done);
    this.#at = to;
    if (!said) return;
    this.#last = Date.now();
    this.say(said);
  }
}
