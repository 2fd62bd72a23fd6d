// A conversation as a tree of turns: editing a message or asking again adds a branch, and nothing
// that was written is lost. Plain data and functions; no DOM, no storage.

/**
 * @typedef {object} Turn
 * @property {string} id
 * @property {string} parent id of the turn before it; "" for the first
 * @property {"user" | "assistant"} role
 * @property {string} content
 * @property {number} at milliseconds since 1970, when it was made: the order among its siblings
 * @property {number} changed when it was last written to: the newer one wins when tabs meet
 * @property {boolean} [gone]
 * @property {string} [model]
 * @property {"stop" | "length" | "cancelled" | "error"} [finish] absent while it is written
 * @property {{kind: string, message: string}} [problem]
 * @property {{prompt: number, completion: number, cached: number}} [usage]
 * @property {{first: number, writing: number}} [seconds] to the first text, and from it to the last
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} titled when the title was last set by hand; 0: never
 * @property {number} created
 * @property {number} changed
 * @property {Record<string, Turn>} turns
 * @property {Record<string, string>} chosen per parent, the child that is shown
 * @property {string} system
 */

/** @param {{system?: string, now?: number}} [options] @returns {Conversation} */
export function newConversation({ system = "", now = Date.now() } = {}) {
  return {
    id: newId(), title: "", titled: 0, created: now, changed: now, turns: {}, chosen: {}, system,
  };
}

export function newId() {
  // crypto.randomUUID is not there over plain HTTP from another machine.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {Conversation} conversation @param {string} parent @returns {Turn[]} */
export function childrenOf(conversation, parent) {
  return Object.values(conversation.turns)
    .filter((turn) => turn.parent === parent && !turn.gone)
    .sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
}

/** The turns that are shown, first to last. @param {Conversation} conversation @returns {Turn[]} */
export function shownTurns(conversation) {
  /** @type {Map<string, Turn[]>} */
  const children = new Map();
  for (const turn of Object.values(conversation.turns)) {
    if (turn.gone) continue;
    if (!children.has(turn.parent)) children.set(turn.parent, []);
    children.get(turn.parent).push(turn);
  }
  const shown = [];
  for (let parent = ""; ; ) {
    const among = children.get(parent);
    if (!among) return shown;
    const picked = among.find((turn) => turn.id === conversation.chosen[parent]);
    const turn = picked ?? among.reduce((last, next) => (next.at >= last.at ? next : last));
    shown.push(turn);
    parent = turn.id;
  }
}

/** Add a turn and show it. @param {Conversation} conversation @param {Partial<Turn>} of @returns {Turn} */
export function addTurn(conversation, of, now = Date.now()) {
  const before = childrenOf(conversation, of.parent).at(-1);
  const at = before ? Math.max(now, before.at + 1) : now;
  const turn = /** @type {Turn} */ ({ id: newId(), content: "", at, changed: now, ...of });
  conversation.turns[turn.id] = turn;
  conversation.chosen[turn.parent] = turn.id;
  conversation.changed = now;
  if (!conversation.title && turn.role === "user") conversation.title = titleOf(turn.content);
  return turn;
}

/** Show another version. @param {Conversation} conversation @param {string} id */
export function choose(conversation, id, now = Date.now()) {
  conversation.chosen[conversation.turns[id].parent] = id;
  conversation.changed = now;
}

/**
 * Take a turn and all after it away; what comes back puts them there again.
 * @param {Conversation} conversation @param {string} id @returns {(now?: number) => void}
 */
export function removeTurn(conversation, id, now = Date.now()) {
  const removed = [];
  for (const open = [id]; open.length; ) {
    const turn = conversation.turns[open.pop()];
    removed.push(turn);
    open.push(...childrenOf(conversation, turn.id).map((child) => child.id));
    Object.assign(turn, { gone: true, changed: now });
  }
  conversation.changed = now;
  return (back = Date.now()) => {
    for (const turn of removed) {
      delete conversation.turns[turn.id].gone;
      conversation.turns[turn.id].changed = Math.max(back, now + 1);
    }
    choose(conversation, id, back);
  };
}

/**
 * The messages that a turn answers, as the server takes them.
 * @param {Conversation} conversation @param {string} parent id of the last of them
 */
export function messagesTo(conversation, parent) {
  const messages = [];
  for (let turn = conversation.turns[parent]; turn; turn = conversation.turns[turn.parent]) {
    // An answer of which nothing came is no turn that a model should see.
    if (turn.content === "") continue;
    const next = messages[0];
    // Two of one role in a row, with a lost answer between: many templates refuse that.
    if (next?.role === turn.role) next.content = `${turn.content}\n\n${next.content}`;
    else messages.unshift({ role: turn.role, content: turn.content });
  }
  if (conversation.system.trim()) messages.unshift({ role: "system", content: conversation.system });
  return messages;
}

/** A title: the first line of a message, cut at a word. @param {string} text */
export function titleOf(text) {
  const line = text.trim().split("\n", 1)[0].replace(/^[#>*\s`-]+/, "").trim();
  if (line.length <= 60) return line || "Untitled";
  return `${line.slice(0, 60).replace(/\s+\S*$/, "")}…`;
}

/**
 * Bring into `ours` what another tab has saved: turn by turn, the newer wins, and nothing that
 * either has is lost.
 * @param {Conversation} ours @param {Conversation} theirs
 */
export function mergeInto(ours, theirs) {
  for (const [id, turn] of Object.entries(theirs.turns)) {
    const own = ours.turns[id];
    if (!own || turn.changed > own.changed) ours.turns[id] = turn;
  }
  const newer = theirs.changed > ours.changed;
  ours.chosen = newer ? { ...ours.chosen, ...theirs.chosen } : { ...theirs.chosen, ...ours.chosen };
  if (theirs.titled > ours.titled) Object.assign(ours, { title: theirs.title, titled: theirs.titled });
  if (newer) ours.system = theirs.system;
  ours.changed = Math.max(ours.changed, theirs.changed);
}

/**
 * A conversation out of a file, with what belongs to one and nothing else.
 * @param {any} value @returns {Conversation | null}
 */
export function conversationFrom(value) {
  if (!value?.id || !isId(value.id) || typeof value.turns !== "object") return null;
  const turns = {};
  for (const turn of Object.values(value.turns ?? {})) {
    const known = turnFrom(turn);
    if (!known) return null;
    turns[known.id] = known;
  }
  const chosen = Object.entries(value.chosen ?? {}).filter((pair) => pair.every(isId));
  const now = Date.now();
  return {
    id: value.id,
    title: typeof value.title === "string" ? value.title.slice(0, 200) : "Untitled",
    titled: numberOr(value.titled, 0),
    created: numberOr(value.created, now),
    changed: numberOr(value.changed, now),
    turns,
    chosen: Object.fromEntries(chosen),
    system: typeof value.system === "string" ? value.system : "",
  };
}

const FIGURES = { usage: ["prompt", "completion", "cached"], seconds: ["first", "writing"] };

/** @param {any} turn @returns {Turn | null} */
function turnFrom(turn) {
  const { id, parent, role, content } = turn ?? {};
  if (!id || !isId(id) || !isId(parent) || typeof content !== "string") return null;
  if (role !== "user" && role !== "assistant") return null;
  const known = { id, parent, role, content, at: numberOr(turn.at, 0), changed: numberOr(turn.changed, 0) };
  if (turn.gone === true) known.gone = true;
  if (typeof turn.model === "string") known.model = turn.model;
  if (["stop", "length", "cancelled", "error"].includes(turn.finish)) known.finish = turn.finish;
  if (typeof turn.problem?.message === "string") {
    known.problem = { kind: String(turn.problem.kind), message: turn.problem.message };
  }
  for (const [name, parts] of Object.entries(FIGURES)) {
    if (turn[name] && parts.every((part) => Number.isFinite(turn[name][part]))) {
      known[name] = Object.fromEntries(parts.map((part) => [part, turn[name][part]]));
    }
  }
  return known;
}

/** @param {any} value */
function isId(value) {
  return typeof value === "string" && /^[0-9a-zA-Z-]{0,64}$/.test(value);
}

/** @param {any} value @param {number} other */
function numberOr(value, other) {
  return Number.isFinite(value) ? value : other;
}
