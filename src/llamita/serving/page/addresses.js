// Addresses in Markdown: where one ends, and whether it may be followed.

// A destination longer than this is no link: it bounds the work on text such as "[a]([a]([a](".
const LONGEST_DESTINATION = 2048;

/**
 * The address if it may be followed, else null.
 * @param {string} address
 */
export function safeAddress(address) {
  // Browsers drop tabs and line ends inside an address, and controls before it.
  const bare = address.replace(/[\u0000-\u0020\u007f-\u009f]/g, "");
  if (!/^(?:https?:\/\/|mailto:)/i.test(bare)) return null;
  try {
    return new URL(bare).href;
  } catch {
    return null;
  }
}

/**
 * The address in "(address "title")" and where that ends.
 * @param {string} text @param {number} from
 */
export function destination(text, from) {
  if (text[from] !== "(") return null;
  let at = from + 1;
  let depth = 1;
  for (const limit = Math.min(text.length, at + LONGEST_DESTINATION); at < limit; at += 1) {
    const sign = text[at];
    if (sign === "\n") return null;
    if (sign === "\\") at += 1;
    else if (sign === "(") depth += 1;
    else if (sign === ")" && (depth -= 1) === 0) break;
  }
  if (depth !== 0 || text[at] !== ")") return null;
  const inside = text.slice(from + 1, at).trim();
  const written = /^(?:<([^<>]*)>|(\S*))(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?$/.exec(inside);
  if (!written) return null;
  const address = (written[1] ?? written[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1");
  return { address, end: at + 1 };
}

/** An address in running text without the sentence's own signs. @param {string} written */
export function trimmedUrl(written) {
  let url = written;
  for (;;) {
    const last = url.at(-1);
    if (last === ")" && count(url, ")") <= count(url, "(")) return url;
    if (!last || !/[?!.,:;*_~'")\]]/.test(last)) return url;
    url = url.slice(0, -1);
  }
}

/** @param {string} text @param {string} sign */
function count(text, sign) {
  return text.split(sign).length - 1;
}
