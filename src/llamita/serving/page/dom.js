// Elements, made without HTML.

/** @typedef {Node | string | null | undefined | false} Child */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. Properties that begin with "on" are listeners; `class`, `aria-…`, `data-…` and `role`
 * are attributes; others are set on the element.
 * @param {string} name
 * @param {Record<string, any>} [properties]
 * @param {...Child} children
 */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && !key.includes("-")) element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child || child === ""));
  return element;
}

/** The element with this id, which the page has. @param {string} id @returns {any} */
export function byId(id) {
  return document.getElementById(id);
}

// Each a path in a box of 24, drawn as a line of 1.75.
const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h10",
  plus: "M12 5v14M5 12h14",
  search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13ZM15.5 15.5 20 20",
  settings: "M4 7h9M19 7h1M4 17h3M13 17h7M16 9.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5ZM10 19.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5Z",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8ZM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6 7 7M17 17l1.4 1.4M5.6 18.4 7 17M17 7l1.4-1.4",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5Z",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  send: "M12 20V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "M5 12.5 10 17 19 7",
  edit: "M4 20h4L19.5 8.5a2.1 2.1 0 0 0-3-3L5 17v3ZM14 7l3 3",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  close: "M6 6l12 12M18 6 6 18",
  out: "M12 15V4M7.5 8.5 12 4l4.5 4.5M5 15v5h14v-5",
  into: "M12 4v11M7.5 10.5 12 15l4.5-4.5M5 15v5h14v-5",
};

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button that shows a picture and has a name.
 * @param {keyof typeof ICONS} picture @param {string} label @param {(event: Event) => void} onclick
 * @param {Record<string, any>} [properties]
 */
export function iconButton(picture, label, onclick, properties = {}) {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties },
    icon(picture),
  );
}

/** Put text on the clipboard; false where the browser does not let it. @param {string} text */
export async function copyText(text) {
  try {
    // Only there over HTTPS and on the machine itself.
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const held = document.activeElement;
    const area = h("textarea", { class: "hidden", value: text, readOnly: true, "aria-hidden": "true" });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (held instanceof HTMLElement) held.focus({ preventScroll: true });
    return copied;
  }
}

/** A button that copies what `text` gives, and says so. @param {string} label @param {() => string} text */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const copied = await copyText(text());
    button.replaceChildren(icon(copied ? "done" : "close"));
    const said = copied ? "Copied" : "The browser did not allow copying";
    button.setAttribute("aria-label", said);
    button.title = said;
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", label);
      button.title = label;
    }, 1600);
  });
  return button;
}
