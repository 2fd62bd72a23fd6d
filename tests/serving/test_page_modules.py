"""The page's modules that need no browser, by Node's own test runner."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llamita.serving import pages

PAGE = Path(pages.__file__).parent / "page"
TESTS = Path(__file__).parent / "page_tests"
NODE = shutil.which("node")


def test_modules(tmp_path: Path) -> None:
    if NODE is None:
        pytest.skip("there is no node here; install it with `apt-get install nodejs`")
    for file in (*PAGE.glob("*.js"), *TESTS.glob("*.js")):
        shutil.copy(file, tmp_path)
    # Node takes .js for CommonJS otherwise; the browser is told by the page.
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    run = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", *sorted(map(str, tmp_path.glob("*.test.js")))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr
    counted = next(line for line in run.stdout.splitlines() if line.startswith("# tests "))
    assert int(counted.split()[2]) >= 40, counted
