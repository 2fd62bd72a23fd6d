"""What the model says in the page's tests, and scripts that ask the browser something."""

from __future__ import annotations

from llamita.inference.engine import Request
from tests.serving.serving_fakes import Script

MARKDOWN = """# Heading

Some **bold**, *emphasis* and `code`; [a link](https://example.org/).

- one
  - nested
- two

| a | b |
|--:|---|
| 1 | 2 |

```python
print("hi")
```

> quoted"""
HOSTILE = """<script>window.hurt = 1</script>
<img src=x onerror="window.hurt = 2"> [x](javascript:window.hurt=3) ![y](https://example.org/y.png)

```html
<script>window.hurt = 4</script>
```"""
WORDS = " ".join(f"word{number}" for number in range(400))


def asked(request: Request) -> str:
    """The last message of the user's, out of the prompt's bytes."""
    text = bytes(number for number in request.prompt if number < 256).decode(errors="replace")
    return text.rsplit("user\n", 1)[-1].split("assistant\n", 1)[0].strip()


def script(request: Request) -> Script:
    text = asked(request)
    if "markdown" in text:
        return Script(MARKDOWN, delay=0.001, burst=5)
    if "hostile" in text:
        return Script(HOSTILE, delay=0.001, burst=3)
    if "forever" in text:
        return Script(WORDS, delay=0.02, burst=8, ends=False)
    if "paragraphs" in text:
        return Script("A line of text.\n\n" * 150, delay=0.001, burst=100)
    if "fail" in text:
        return Script("It began well", error=RuntimeError("no memory"))
    # A second where speed is measured: a busy browser reads what comes sooner at once, and then
    # there is no time to divide by.
    delay = 0.05 if text.startswith("Hello") else 0.001
    return Script(f"You said: {text}", delay=delay, burst=4, cached_tokens=3)


# Pixels between what is in view and the end.
TO_THE_END = """
const { scrollHeight, scrollTop, clientHeight } = document.querySelector('#scroller');
return scrollHeight - scrollTop - clientHeight;
"""
WIDTHS = """
const inner = document.querySelector('#scroller').scrollWidth;
return [document.documentElement.scrollWidth, inner, innerWidth];
"""
# Things to touch that are smaller than 44 pixels (WCAG 2.2, target size, enhanced).
SMALL_TARGETS = """
return [...document.querySelectorAll('button, .chats a, input, select')]
  .filter((e) => e.checkVisibility() && !e.disabled && !e.matches('.sr-only, .body input'))
  .map((e) => [e.ariaLabel ?? e.textContent, e.getBoundingClientRect()])
  .filter(([, box]) => Math.min(box.width, box.height) < 44)
  .map(([name]) => name);
"""
# What has the focus, and whether that is seen; the field for messages shows it by its frame.
FOCUSED = """
const e = document.activeElement;
const seen = getComputedStyle(e).outlineStyle !== 'none' || e.matches('body, #message');
return [e.ariaLabel ?? e.textContent, seen];
"""
UNNAMED = """
return [...document.querySelectorAll('button, input, textarea, a, dialog, nav, aside, meter')]
  .filter((e) => !e.ariaLabel && !e.getAttribute('aria-labelledby') && !e.labels?.length)
  .filter((e) => !(e.matches('button, a') && e.textContent.trim()))
  .map((e) => e.outerHTML.slice(0, 90));
"""
DANGLING = """
return ['aria-describedby', 'aria-labelledby', 'aria-controls', 'for']
  .flatMap((name) => [...document.querySelectorAll(`[${name}]`)].map((e) => e.getAttribute(name)))
  .filter((id) => !document.getElementById(id));
"""
ACTIVE_CONTENT = """
return document.querySelectorAll('.body :is(script, img, iframe, svg:not(.icon))').length;
"""


def luminance(colour: list[int]) -> float:
    """WCAG 2.2's relative luminance."""
    parts = [value / 255 for value in colour]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[int], two: list[int]) -> float:
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Every text that is shown, with the colour behind it: the nearest opaque one.
COLOURS = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function paint(colours) {
  canvas.clearRect(0, 0, 1, 1);
  for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
const found = new Map();
for (const e of document.querySelectorAll('body *')) {
  const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!(words || e.placeholder) || !e.checkVisibility()) continue;
  if (e.closest('.sr-only, :disabled, noscript, title')) continue;
  const behind = [];
  for (let up = e; up; up = up.parentElement) {
    behind.unshift(getComputedStyle(up).backgroundColor);
  }
  const style = getComputedStyle(e, e.placeholder && !e.value ? '::placeholder' : null);
  const pair = [paint([...behind, style.color]), paint(behind)];
  found.set(JSON.stringify(pair), `${e.className || e.tagName}: ${e.textContent.slice(0, 30)}`);
}
return [...found];
"""
