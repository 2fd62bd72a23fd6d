"""The live panel: what is drawn fits any window, nothing that was said is lost, and the terminal
is given back however a run ends."""

from __future__ import annotations

import io
import math
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from llamita.reporting import charts, panel
from llamita.reporting.panel import Panel, watching
from llamita.reporting.panel_lines import STYLES
from llamita.reporting.panel_state import RunState
from llamita.reporting.panel_view import STOPPING, draw
from tests.reporting.crafted import Event, events
from tests.training.helpers import losses, tiny_values

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def state_after(told: list[Event]) -> RunState:
    state = RunState()
    for event in told:
        state.observe(event)
    return state


def drawn(state: RunState, width: int, height: int, **options: Any) -> list[str]:
    lines = draw(state, width, height, 1040.0, stopping=options.get("stopping", False))
    assert {style for line in lines for _, style in line} <= set(STYLES)
    return ["".join(text for text, _ in line) for line in lines]


# -- what is drawn ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 20, 230, 10_000])
@pytest.mark.parametrize("width", [24, 40, 63, 80, 96, 120, 250])
def test_the_panel_fits_every_window(width: int, count: int) -> None:
    state = state_after(events()[:count])
    for height in range(6, 70, 3):
        lines = drawn(state, width, height)
        assert len(lines) <= height
        assert {cell_len(line) for line in lines[:-1]} == {width}
        assert cell_len(lines[-1]) <= width - 4, "room for ^C^C"


def test_what_the_panel_says() -> None:
    shown = "\n".join(drawn(state_after(events()[:-1]), 120, 40))
    for words in (
        "runs/small", "1.08M parameters", "cpu bfloat16, compiled", "step 400/400",
        "stage decay 2 of 2, 100/100 steps", "→ 1.00e-05", "41.0k tokens/s", "MFU 47%",
        "bits per byte 1.6000", "memory 0.57 GB of 16.0 GB", "data wait 0.4%", "skipped 3",
        "prose 31.0% of 30.0%", "saved step-300", "sample at step 400", "小さな 🦙",
        "3 of the last 100 steps were skipped", "Ctrl-C saves and prints the command",
    ):  # fmt: skip
        assert words in shown, words
    assert STOPPING in "\n".join(drawn(state_after(events()), 120, 40, stopping=True))


def test_an_alert_that_lasts_tells_what_to_do() -> None:
    told = events(200)
    assert "optimizer.learning_rate=0.002" in "\n".join(drawn(state_after(told), 120, 40))
    small = "\n".join(drawn(state_after(told), 40, 17))
    assert "3 of the last 100" in small
    assert "learning rate" in small


def test_text_of_a_model_cannot_move_the_cursor() -> None:
    told = events(100, prompt="\x1b[2J\x07\u202e[red]x")
    lines = drawn(state_after(told), 120, 40)
    assert all(character.isprintable() for line in lines for character in line)
    assert "[red]x" in "\n".join(lines), "no markup"


# -- charts -------------------------------------------------------------------------------------


def dots(chart: charts.Chart, layer: int) -> set[tuple[int, int]]:
    """Columns and rows, from the bottom, of a layer's dots; braille's numbering is Unicode's."""
    numbering = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]
    found = set()
    for row, runs in enumerate(chart.rows):
        column = 0
        for text, each in runs:
            for character in text:
                bits = ord(character) - 0x2800 if character != " " else 0
                for bit, (x, y) in enumerate(numbering):
                    if each == layer and bits >> bit & 1:
                        found.add((2 * column + x, 4 * (len(chart.rows) - row) - 1 - y))
                column += 1
    return found


def test_a_rising_line_rises() -> None:
    chart = charts.line_chart([(float(n), float(n)) for n in range(100)], 30, 10)
    line = dots(chart, 2)
    tops = [max(y for x, y in line if x == column) for column in range(60)]
    assert tops == sorted(tops)
    assert tops[0] <= 3
    assert tops[-1] >= 36
    assert chart.low < 99 / 6
    assert chart.high > 95


def test_an_area_is_filled_down_to_zero() -> None:
    chart = charts.line_chart([(float(n), 50.0) for n in range(40)], 20, 5, area=True)
    assert chart.low == 0
    everything = dots(chart, 1) | dots(chart, 2)
    for column in range(40):
        heights = sorted(y for x, y in everything if x == column)
        assert heights[0] == 0
        assert heights[-1] >= 18


def test_one_point_and_no_point() -> None:
    assert dots(charts.line_chart([(1.0, 3.0)], 10, 4), 2)
    assert not dots(charts.line_chart([], 10, 4), 2)


def test_a_long_history_keeps_its_means() -> None:
    draw_number = random.Random(1)
    values = [draw_number.random() for _ in range(40_960)]
    history = charts.History(capacity=1200)
    for number, value in enumerate(values, 1):
        history.add(number, value)
    history.add(0, math.nan)
    assert 600 <= len(history.points) <= 1200
    stride = round(history.points[0][0])
    for number, (x, y) in enumerate(history.points):
        block = values[number * stride : (number + 1) * stride]
        assert x == (number + 1) * stride
        assert y == pytest.approx(sum(block) / stride)


def test_bars_and_sparklines() -> None:
    assert charts.bar(0.5, 10) == ("━━━━━", "─────")
    assert charts.bar(0.25, 10) == ("━━╸", "───────")
    assert charts.bar(7.0, 4) == ("━━━━", "")
    assert charts.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert charts.sparkline([9, 0, 7], 2) == "▁█", "the last ones"
    assert charts.sparkline([2, 2], 4) == "▁▁"


# -- on a terminal ------------------------------------------------------------------------------


def test_what_is_said_stays_and_the_steady_line_does_not() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=30, color_system=None)
    view = Panel(console)
    view.say("before the run [bold]")
    for event in events():
        view.observe(event)
        if event["event"] == "validation":
            view.say(f"step {event['step']}: validated [/nonsense]")
            view.say(f"step {event['step']:>3}/400 stable | loss 2.0 | lr 1e-3")
    view.close()
    view.close()
    view.say("after the run")
    text = screen.getvalue()
    assert text.startswith("before the run [bold]\n" + HIDE)
    for number in (0, 100, 200, 300, 400):
        assert text.count(f"step {number}: validated [/nonsense]") == 1
    assert "/400 stable | loss" not in text
    assert text.count("alert at step 190: 3 of the last") == 1
    last = text[text.rindex(SHOW) :]
    assert "400 steps in" in last
    assert "alerts, told above: spikes at step 190" in last
    assert "bits per byte 1.6000 from 3.9000" in last
    assert last.endswith("after the run\n")


def test_a_panel_that_fails_becomes_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise ZeroDivisionError("of a defect")

    monkeypatch.setattr(panel, "draw", broken)
    screen = io.StringIO()
    with Panel(Console(file=screen, force_terminal=True, width=100, height=30)) as view:
        view.observe(events()[0])
        deadline = time.monotonic() + 10
        while SHOW not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        view.say("step 1/4 stable | loss 2.0")
        view.observe(events()[3])
    text = screen.getvalue()
    assert "the panel failed (ZeroDivisionError: of a defect)" in text
    assert "step 1/4 stable | loss 2.0" in text


@pytest.mark.parametrize("term", ["dumb", "", "xterm"])
def test_no_panel_off_a_terminal(
    term: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", term)
    with watching() as view:
        for event in events(200):
            for observer in view.observers:
                observer.observe(event)
        view.say("step   10/400 stable | loss 2.0")
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "step   10/400 stable | loss 2.0"
    assert [line[:22] for line in told[:-1]] == ["alert at step 190: 3 o"]
    assert not any(observer.live for observer in view.observers)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, command: list[str], size: str = "100x30", **environment: str) -> None:
        ours, theirs = pty.openpty()
        width, height = size.split("x")
        subprocess.run(["stty", "cols", width, "rows", height], stdin=theirs, check=True)
        self.descriptor, self.text = ours, ""
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": "", **environment},
        )
        os.close(theirs)

    def until(self, pattern: str | None, seconds: float = 60.0) -> str:
        """Read until a pattern was shown, or to the end."""
        deadline = time.monotonic() + seconds
        while pattern is None or not re.search(pattern, self.text):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern} does not come:\n{self.text[-3000:]}"
            if not select.select([self.descriptor], [], [], left)[0]:
                continue
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # Linux's way to say that the other side has closed
                data = b""
            if not data:
                assert pattern is None, f"{pattern} did not come:\n{self.text[-3000:]}"
                break
            self.text += data.decode(errors="replace")
        return self.text

    def ended(self) -> int:
        self.until(None)
        os.close(self.descriptor)
        return self.process.wait(30)


PROGRAM = """
import os, signal, sys, time
from llamita.reporting.panel import watching
from tests.reporting.crafted import events
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts without it
with watching() as view:
    (observer,) = view.observers
    for event in events():
        observer.observe({**event, "time": time.time()})
        time.sleep(0.002)
    view.say("every event was told")
    if sys.argv[1] == "error":
        raise RuntimeError("a defect")
    if sys.argv[1] == "interrupt":
        observer.stopping()
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
"""


@pytest.mark.parametrize(
    ("ending", "size"), [("end", "20x6"), ("error", "40x20"), ("interrupt", "100x30")]
)
def test_the_terminal_is_given_back(ending: str, size: str) -> None:
    terminal = Terminal([sys.executable, "-c", PROGRAM, ending], size)
    code = terminal.ended()
    assert code == {"end": 0, "error": 1, "interrupt": -signal.SIGINT}[ending]
    assert terminal.text.count(HIDE) == terminal.text.count(SHOW) == 1
    shown, after = terminal.text.split(SHOW)
    assert "every event was told" in terminal.text
    assert "400 steps in" in after
    assert ("RuntimeError: a defect" in after) == (ending == "error")
    assert (STOPPING in shown) == (ending == "interrupt")


def test_no_color() -> None:
    plain = Terminal([sys.executable, "-c", PROGRAM, "end"], NO_COLOR="1")
    assert plain.ended() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m|\x1b\[[0-9;]*9[0-7]m", plain.text)
    assert "━" in plain.text


@pytest.mark.slow
def test_a_run_on_a_terminal_is_stopped_and_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    values = tiny_values(tiny_data, samples={"prompts": ["a "], "max_tokens": 4})
    values["stages"][0]["tokens"] *= 100
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**values, "checkpoints": {}}))
    command = [sys.executable, "-m", "llamita", "train", str(tmp_path / "tiny.yaml")]
    command += ["--out", str(tmp_path / "run")]
    first = Terminal(command)
    first.until("step [1-9][0-9]*/804")
    os.killpg(first.process.pid, signal.SIGINT)
    assert first.ended() == 130
    assert HIDE in first.text
    shown = first.text[first.text.rindex(SHOW) :]
    assert "steps in" in shown
    assert "Go on with: " in shown
    taken = len(losses(tmp_path / "run"))
    second = Terminal([*command, "--plain"])
    assert second.ended() == 0
    assert "\x1b" not in second.text
    assert re.search(r"step 804/804 decay \| loss", second.text)
    assert len(losses(tmp_path / "run")) == 804 > taken
