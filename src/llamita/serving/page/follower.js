// Keeps the newest text in view while it grows, until the reader scrolls up.

// Nearer to the end than this counts as at the end, in pixels.
const NEAR = 40;

export class Follower {
  #lastTop = 0;
  #lastHeight = 0;

  /** @param {HTMLElement} scroller @param {HTMLElement} content @param {(away: boolean) => void} onAway */
  constructor(scroller, content, onAway) {
    this.scroller = scroller;
    this.onAway = onAway;
    this.following = true;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#grown()).observe(content);
    new ResizeObserver(() => this.#grown()).observe(scroller);
  }

  get #atEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  #scrolled() {
    const { scrollTop, scrollHeight } = this.scroller;
    // Text that became shorter moves the view up as well; a reader does so at the same height.
    const up = scrollTop < this.#lastTop - 1 && scrollHeight >= this.#lastHeight;
    if (this.#atEnd) this.following = true;
    else if (up) this.following = false;
    this.#lastTop = scrollTop;
    this.#lastHeight = scrollHeight;
    this.onAway(!this.#atEnd && !this.following);
  }

  #grown() {
    if (this.following) this.toEnd();
    else this.onAway(!this.#atEnd);
  }

  toEnd() {
    this.following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.onAway(false);
  }
}
