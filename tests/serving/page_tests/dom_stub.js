// As much of a DOM as render.js uses, to look at what it makes. No HTML is parsed anywhere.

class NodeStub {
  constructor() {
    this.childNodes = [];
    this.parentNode = null;
  }
  get firstChild() { return this.childNodes[0] ?? null; }
  get lastChild() { return this.childNodes.at(-1) ?? null; }
  appendChild(node) {
    node.parentNode = this;
    this.childNodes.push(node);
    counts.made += 1;
    return node;
  }
  append(...nodes) {
    for (const node of nodes) this.appendChild(typeof node === "string" ? new TextStub(node) : node);
  }
  replaceChildren(...nodes) {
    this.childNodes = [];
    this.append(...nodes);
  }
  replaceWith(node) {
    node.parentNode = this.parentNode;
    this.parentNode.childNodes[this.parentNode.childNodes.indexOf(this)] = node;
    counts.made += 1;
  }
  remove() {
    this.parentNode.childNodes.splice(this.parentNode.childNodes.indexOf(this), 1);
  }
  get textContent() { return this.childNodes.map((child) => child.textContent).join(""); }
}

class TextStub extends NodeStub {
  constructor(data) {
    super();
    this.data = data;
  }
  appendData(more) { this.data += more; }
  get textContent() { return this.data; }
}

class ElementStub extends NodeStub {
  constructor(name) {
    super();
    this.name = name;
    this.attributes = {};
    this.listeners = [];
  }
  setAttribute(key, value) { this.attributes[key] = value; }
  addEventListener(name) { this.listeners.push(name); }
  querySelector(name) {
    for (const child of this.childNodes) {
      if (child.name === name) return child;
      const below = child.querySelector?.(name);
      if (below) return below;
    }
    return null;
  }
}

class AnchorStub extends ElementStub {}
class ListStub extends ElementStub {}

/** Nodes put into the page since it was last set to 0. */
export const counts = { made: 0 };

/** @param {any} node what stands in it, as text with marks; two pages that look alike give one text */
export function drawn(node) {
  if (node instanceof TextStub) return node.data.replace(/</g, "&lt;");
  const own = ["href", "rel", "target", "start", "className"].filter((key) => node[key] !== undefined).map((key) => ` ${key}=${node[key]}`);
  return `<${node.name}${own.join("")}>${node.childNodes.map(drawn).join("")}</${node.name}>`;
}

export function install() {
  const kinds = { a: AnchorStub, ol: ListStub };
  globalThis.HTMLAnchorElement = AnchorStub;
  globalThis.HTMLOListElement = ListStub;
  globalThis.document = {
    createElement: (name) => new (kinds[name] ?? ElementStub)(name),
    createElementNS: (_, name) => new ElementStub(name),
    createTextNode: (data) => new TextStub(data),
  };
  return new ElementStub("div");
}
