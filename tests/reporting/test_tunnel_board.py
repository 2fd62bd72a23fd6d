"""The board of a running study: what it says is what happened, and it fits any window."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from llamita.reporting import tunnel_board
from llamita.reporting.panel_lines import STYLES
from llamita.reporting.tunnel_board import Board
from llamita.reporting.tunnel_board_view import BoardState, draw_board
from tests.reporting.test_panel import HIDE, SHOW, Terminal
from tests.reporting.tunnels import run

EVIL = "\x1b[2J[red]\u202e\x07x"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def board(clock: Clock) -> Board:
    return Board("lr-transfer", plain=True, clock=clock)


def state_of(each: Board) -> BoardState:
    return each._state


def drawn(state: BoardState, width: int, height: int, now: float = 1060.0) -> list[str]:
    lines = draw_board(state, width, height, now)
    assert {style for line in lines for _, style in line} <= set(STYLES)
    return ["".join(text for text, _ in line) for line in lines]


def busy(name: str = "sweep w128 minicpm seed 0, learning_rate 0.005") -> Board:
    """Two of four runs have ended and two go, after a minute."""
    clock = Clock()
    found = board(clock)
    found.planned(4, 8e15, 160.0)
    for slot in range(2):
        found.started(slot, f"a{slot}", name, tokens=1_000_000, flops=1e15)
    clock.now += 30
    found.ended(0, run("a0", loss=1.75, flops=1e15))
    found.ended(1, run("a1", loss=None, status="diverged", reason="the loss was 9.41", flops=5e14))
    for slot in range(2):
        found.started(slot, f"b{slot}", name, tokens=4_000_000, flops=3e15, first_step=100)
        found.progress(slot, 100, 500, None)
    clock.now += 30
    for slot in range(2):
        found.progress(slot, 200, 500, 2.125)
    return found


def test_what_it_shows() -> None:
    shown = "\n".join(drawn(state_of(busy()), 120, 30))
    # A quarter of each of two runs of 3e15 and two of 1e15 that are over: 3.5e15 of 8e15.
    assert "44%  2/4 runs" in shown
    # Computed: 1e15 and 5e14 that ended, 1.5e15 under way, in 60 s; left 4.5e15.
    assert "50 TFLOP/s" in shown
    assert "ETA 1m30s" in shown
    assert "done 1  diverged 1" in shown
    # 100 of 400 steps and a million tokens in 30 s.
    assert len(re.findall(r"25%  2\.1250 +33\.3k tokens/s", shown)) == 2
    assert "1.7500  sweep w128 minicpm seed 0" in shown
    assert "learning_rate 0.005: diverged: the loss was 9.41" in shown
    assert "2 running" in shown


@pytest.mark.parametrize("width", [4, 24, 40, 63, 80, 120, 250])
def test_it_fits_every_window(width: int) -> None:
    for found in (Board(plain=True), busy(), busy(EVIL), busy("字" * 80)):
        for height in range(1, 40, 3):
            lines = drawn(state_of(found), width, height)
            assert len(lines) <= max(1, height)
            if width >= 24 and height >= 8:
                assert {cell_len(line) for line in lines} == {width}
            assert all(cell_len(line) <= width for line in lines)
            assert all(each.isprintable() for line in lines for each in line)


def test_many_slots_leave_room() -> None:
    found = busy()
    for slot in range(2, 40):
        found.started(slot, f"c{slot}", "sweep")
    lines = drawn(state_of(found), 80, 20)
    assert len(lines) == 20
    assert any("more" in line for line in lines)


def test_time_left() -> None:
    clock = Clock()
    found = board(clock)
    state = state_of(found)
    assert state.eta(clock.now) is None
    found.planned(10, 10e15, 5000.0)
    assert state.eta(clock.now) == 5000.0, "nothing measured: as planned"
    found.ended(0, run("old", flops=2e15))
    assert state.eta(clock.now) == pytest.approx(4000), "an earlier session's tells no speed"
    found.started(0, "a", "run", flops=1e15)
    clock.now += 100
    # Pruned after a tenth: the whole of it is off the plan, a tenth of it is speed.
    found.ended(0, run("a", loss=None, status="pruned", flops=1e14))
    # 100 s at 1e12 FLOP/s, and 2e12 expected as if 300 s had been spent at it.
    assert state.eta(clock.now) == pytest.approx(7e15 / 1.75e12)
    state.spent, state.began = 1e17, clock.now - 1e5  # much later: what was expected is forgotten
    assert state.eta(clock.now) == pytest.approx(7e15 / 1e12, rel=0.01)
    state.expected, state.spent, state.began = None, 1e14, clock.now - 100
    assert state.eta(clock.now) == pytest.approx(7e15 / 1e12)
    found.planned(2, 3e15, None)
    assert state.eta(clock.now) == 0.0
    found.planned(10, 3e15, None)
    assert state.eta(clock.now) is None, "a search's runs have no plan"


def test_what_an_earlier_session_computed_is_no_speed() -> None:
    clock = Clock()
    found = board(clock)
    state = state_of(found)
    found.planned(2, 2e15, None)
    found.started(0, "a", "run", flops=1e15)
    found.progress(0, 900, 1000, None)  # it goes on from there
    clock.now += 100
    found.progress(0, 950, 1000, 2.0)
    assert state.flops_per_second(clock.now) == pytest.approx(5e13 / 100)
    assert state.eta(clock.now) == pytest.approx(1.05e15 / (5e13 / 100))
    found.ended(0, run("a", flops=1e15))
    assert state.flops_per_second(clock.now) == pytest.approx(1e14 / 100)


def test_a_result_of_a_run_that_never_began_leaves_its_slot_alone() -> None:
    """A branch whose trunk failed ends on slot 0, where another run goes on."""
    found = busy()
    found.ended(0, run("lost", loss=None, status="failed", reason="its trunk", flops=0.0))
    assert state_of(found).running[0].key == "b0"
    assert state_of(found).counts["failed"] == 1


def test_a_look_into_a_model_counts_and_a_run_made_elsewhere_does_not() -> None:
    found = busy()
    found.left(0)
    assert (state_of(found).ended, sorted(state_of(found).running)) == (2, [1])
    found.left(1, done=True)
    assert state_of(found).counts["looked into"] == 1


def test_steps_where_nobody_said_tokens() -> None:
    clock = Clock()
    found = board(clock)
    found.started(0, "a", "run")
    found.progress(0, 10, 100, float("nan"))
    clock.now += 10
    found.progress(0, 35, 100, None)
    (line,) = [each for each in drawn(state_of(found), 100, 20) if "steps/s" in each]
    assert "2.5 steps/s" in line
    assert "nan" not in line
    assert " 35%" in line
    found.progress(7, 1, 2, 3.0)  # news of a slot that nobody started


def test_the_best_of_each_experiment() -> None:
    found = board(Clock())
    for key, experiment, loss in (("a", "sweep", 2.0), ("b", "sweep", 1.9), ("c", "law", 1.2)):
        found.started(0, key, f"{experiment} {key}")
        found.ended(0, run(key, experiment, loss=loss))
    found.ended(0, run("d", "law", loss=1.3))
    assert state_of(found).best == {"sweep": (1.9, "sweep b"), "law": (1.2, "law c")}


# -- plain lines -----------------------------------------------------------------------------------


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with board(clock) as found:
        found.planned(3, 3e15, 60.0)
        found.say("reading [bold]")
        for number in range(3):
            found.started(0, f"k{number}", f"sweep {number}", flops=1e15)
            for step in range(40):
                clock.now += 1
                found.progress(0, step, 40, 2.0)
            status: Any = "done" if number else "killed"
            loss = 1.9 if number else None
            found.ended(
                0, run(f"k{number}", status=status, loss=loss, reason="signal 9", flops=1e15)
            )
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "reading [bold]"
    assert told[1] == "1/3 sweep 0: killed after 8.52M tokens, 5m05s: signal 9"
    ended = [line for line in told if re.match(r"\d/3 ", line)]
    assert ended[1:] == [
        f"{number}/3 sweep {number - 1}: 1.9000 bits per byte after 8.52M tokens, 5m05s"
        for number in (2, 3)
    ]
    summaries = [line for line in told if "runs ended" in line]
    assert len(summaries) == 3, "one a minute of two, and the last"
    assert summaries[0].startswith("1 of 3 runs ended, ")
    assert "1 killed" in summaries[0]
    assert "to go" in summaries[0]
    assert summaries[-1] == "lr-transfer: 3 of 3 runs ended, 100% of the FLOPs; 1 killed in 2m00s"
    assert told[-1] == "best of sweep: 1.9000 bits per byte, sweep 1"


def test_nothing_hostile_reaches_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with board(Clock()) as found:
        found.started(0, "k", EVIL)
        found.ended(0, run("k", EVIL, status="failed", loss=None, reason=f"{EVIL}\nsecond line"))
        found.ended(0, run("l", EVIL))
    told = capsys.readouterr().out
    assert all(each.isprintable() for each in told.replace("\n", ""))
    assert len(told.splitlines()) == 4


# -- on a terminal ---------------------------------------------------------------------------------


def test_the_live_board_keeps_what_was_said() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=30, color_system=None)
    with Board("lr-transfer", console=console) as found:
        found.planned(2, 2e15, 60.0)
        found.say("a line [bold]")
        found.started(0, "a", "sweep a", flops=1e15)
        found.progress(0, 5, 10, 2.0)
        deadline = time.monotonic() + 10
        while "sweep a" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        found.ended(0, run("a", loss=1.9, flops=1e15))
        found.ended(1, run("b", loss=None, status="failed", reason="a full disk"))
    text = screen.getvalue()
    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.count("a line [bold]") == 1
    assert "╭─ lr-transfer " in text
    assert "2/2 sweep w128 minicpm seed 0: failed" in text
    last = text[text.rindex(SHOW) :]
    assert "lr-transfer: 2 of 2 runs ended" in last
    assert "best of sweep: 1.9000 bits per byte, sweep a" in last


def test_a_board_that_fails_becomes_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("of a defect")

    monkeypatch.setattr(tunnel_board, "draw_board", broken)
    screen = io.StringIO()
    with Board(console=Console(file=screen, force_terminal=True, width=100, height=30)) as found:
        deadline = time.monotonic() + 10
        while "failed" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        found.started(0, "a", "sweep a")
        found.ended(0, run("a"))
    text = screen.getvalue()
    assert "the board failed (ZeroDivisionError: of a defect)" in text
    assert "1/? sweep a: 1.8123 bits per byte" in text


def test_many_threads_may_tell() -> None:
    found = Board(plain=True, clock=Clock())

    def work(slot: int) -> None:
        for number in range(50):
            found.started(slot, f"{slot}-{number}", "sweep")
            found.progress(slot, 1, 2, 2.0)
            found.ended(slot, run(f"{slot}-{number}", loss=None, status="pruned"))

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert state_of(found).counts == {"pruned": 400}
    assert not state_of(found).running


PROGRAM = """
import time
from llamita.reporting.tunnel_board import Board
from tests.reporting.tunnels import run
with Board("study") as board:
    board.planned(1, 1e15, 1.0)
    board.started(0, "a", "sweep a", flops=1e15)
    for step in range(20):
        board.progress(0, step, 20, 2.0)
        time.sleep(0.03)
    board.ended(0, run("a", flops=1e15))
"""


def test_on_a_terminal_of_its_own() -> None:
    terminal = Terminal([sys.executable, "-c", PROGRAM], "100x24")
    assert terminal.ended() == 0
    assert terminal.text.count(HIDE) == terminal.text.count(SHOW) == 1
    shown, after = terminal.text.split(SHOW)
    assert "sweep a" in shown
    assert "study: 1 of 1 runs ended" in after


def test_off_a_terminal_nothing_moves_the_cursor() -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in found.stdout
    assert found.stdout.splitlines()[0].startswith("1/1 sweep a: 1.8123")


def test_no_torch() -> None:
    code = "import sys, llamita.reporting.tunnel_board, llamita.reporting.tunnel_page; "
    code += "print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
