"""The chat page's files, held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
_FOLDER = Path(__file__).parent / "page"


@dataclass(frozen=True, slots=True)
class PageFile:
    data: bytes
    kind: str


def page_files(folder: Path = _FOLDER) -> dict[str, PageFile]:
    """By name; `index.html` is the page, the others are its assets."""
    return {
        file.name: PageFile(file.read_bytes(), _KINDS[file.suffix])
        for file in sorted(folder.iterdir())
        if file.suffix in _KINDS
    }
