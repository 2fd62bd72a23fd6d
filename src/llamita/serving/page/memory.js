// Small things that the browser remembers: settings and theme for good, the API key for the session.
// A browser that keeps nothing still works; it forgets.

/** @param {string} name @param {any} [other] what is given where nothing is kept */
export function recall(name, other = null) {
  try {
    return JSON.parse(localStorage.getItem(`llamita.${name}`)) ?? other;
  } catch {
    return other;
  }
}

/** @param {string} name @param {any} value */
export function remember(name, value) {
  try {
    localStorage.setItem(`llamita.${name}`, JSON.stringify(value));
  } catch {
    // Full or forbidden: the value holds for as long as the page is open.
  }
}

/**
 * Take out what is kept under names that begin so; each is given once.
 * @param {string} prefix @returns {any[]}
 */
export function takeAll(prefix) {
  try {
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(`llamita.${prefix}`));
    return keys.map((key) => {
      const value = JSON.parse(localStorage.getItem(key));
      localStorage.removeItem(key);
      return value;
    });
  } catch {
    return [];
  }
}

let heldKey = null;

/** @returns {string | null} */
export function recallKey() {
  try {
    return sessionStorage.getItem("llamita.key") ?? heldKey;
  } catch {
    return heldKey;
  }
}

/** @param {string} key */
export function rememberKey(key) {
  heldKey = key;
  try {
    sessionStorage.setItem("llamita.key", key);
  } catch {
    // It is held above.
  }
}
