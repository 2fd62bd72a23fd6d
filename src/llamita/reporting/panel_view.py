"""The live panel drawn: a run's state → lines of styled pieces, for a window of any size."""

from __future__ import annotations

from collections.abc import Sequence

from llamita.planning.quantities import duration, gigabytes
from llamita.planning.quantities import tokens as tokens_text
from llamita.reporting.alerts import Alert
from llamita.reporting.charts import Point, bar, line_chart, sparkline
from llamita.reporting.panel_lines import (
    Line,
    bottom,
    clip,
    cut,
    framed,
    length,
    pad,
    printable,
    shortened,
    titled,
    wrap,
)
from llamita.reporting.panel_state import RunState

STOPS = "Ctrl-C saves and prints the command that goes on"
STOPPING = "stopping after this step, with everything saved (Ctrl-C: at once)"
_WIDE = 96  # columns from which the two plots stand side by side


def draw(state: RunState, width: int, height: int, now: float, *, stopping: bool) -> list[Line]:
    """The panel's lines: at most `height`, of `width` columns but for the last.

    What matters less is left out of a window that is too small, and the plots take what room is
    left.
    """
    inner = width - 4
    head = _overview(state, inner, now)
    facts = _facts(state, inner, now)
    alerts = _alerts(state.finder.active or state.past_alerts[-1:], inner, state, height)
    # Below the frame, because a terminal writes ^C where the cursor rests: after this line.
    told = STOPPING if stopping else STOPS if width >= 60 else "Ctrl-C saves and says how to go on"
    footer: Line = [("  ", ""), (cut(told, inner - 4), "warn" if stopping else "dim")]
    sample = _sample(state, inner, 3 if height >= 34 else 2 if height >= 24 else 0)
    room = height - 2 - len(head) - len(facts) - len(alerts) - 1
    if room - len(sample) < 5:
        sample = sample[: max(0, room - 5)]
        sample = sample if len(sample) > 1 else []
    room -= len(sample)
    while room < 4 and len(facts) > 2:
        facts.pop()
        room += 1
    plots = _plots(state, inner, min(room, 14 if width >= _WIDE else 12))
    body = [*head, *plots, *facts, *sample, *alerts][: max(1, height - 3)]
    return [_top(state, width), *(framed(line, width) for line in body), bottom(width), footer]


# -- parts ----------------------------------------------------------------------------------


def _overview(state: RunState, width: int, now: float) -> list[Line]:
    lines = [_stages_bar(state, width)]
    total = state.last_step
    eta = state.eta(now)
    if not state.ready:
        compiling = state.environment.get("compile")
        left = "compiling and timing a step" if compiling else "timing a step"
        if "eta_seconds" in state.progress:
            left = f"first steps; about {duration(float(state.progress['eta_seconds']))} to go"
    elif state.ended == "early":
        left = "ended early: no gain"
    else:
        left = (
            "done" if state.ended == "done" else f"ETA {duration(eta)}" if eta is not None else ""
        )
    parts: Line = [
        (f"{state.share_done:.0%}", "value"),
        (f"  step {state.step:,}/{total:,}", ""),
        (f"  {tokens_text(state.tokens)}/{tokens_text(state.total_tokens())} tokens", "dim"),
        (f"  {duration(now - state.begun)}", "dim"),
        (f"  {left}", "accent"),
    ]
    if width < 64:
        narrow: Line = [parts[0], parts[1], parts[4]]
        lines.append(clip(narrow, width))
    else:
        lines.append(clip(parts, width))
    lines.append(clip(_schedule(state, width), width))
    return lines


def _schedule(state: RunState, width: int) -> Line:
    stage = state.stage_record
    rate = f"{state.learning_rate:.2e}" if state.ready else "–"
    if stage is None:
        return [(f"stage {state.stage}", "stage"), (f"  learning rate {rate}", "")]
    number = state.stages.index(stage) + 1
    done = max(0, state.step - stage["first_step"])
    end = stage["learning_rate_at_end"]
    goal = f" → {end:.2e}" if abs(end - state.learning_rate) > 1e-3 * abs(end) else ", constant"
    schedule = "" if not state.ready else goal
    place = f" {number} of {len(state.stages)}, {done:,}/{stage['num_steps']:,} steps"
    if width < 64:
        place = f" {number}/{len(state.stages)}"
    return [
        (f"stage {state.stage}", "stage"),
        (place, "dim"),
        (f"  lr {rate}", ""),
        (schedule, "dim"),
    ]


def _stages_bar(state: RunState, width: int) -> Line:
    """One bar for the whole run, cut where stages meet."""
    total = sum(stage["num_steps"] for stage in state.stages)
    if not total:
        done, rest = bar(state.share_done, width)
        return [(done, "accent"), (rest, "frame")]
    line: Line = []
    used = 0
    for number, stage in enumerate(state.stages):
        last = number == len(state.stages) - 1
        end = stage["first_step"] + stage["num_steps"] - state.first_step
        cells = (width if last else round(width * end / total)) - used - (0 if last else 1)
        cells = max(1, cells)
        share = (state.step - stage["first_step"]) / stage["num_steps"]
        done, rest = bar(share, cells)
        line += [(done, "good" if share >= 1 else "accent"), (rest, "frame")]
        used += cells
        if not last:
            line.append(("┃", "frame"))
            used += 1
    return clip(line, width)


def _plots(state: RunState, width: int, height: int) -> list[Line]:
    if height < 3:
        return []
    loss = "" if state.loss is None else f"{state.loss:.4f}"
    rate = float(state.progress.get("tokens_per_second", 0.0))
    speed = f"{rate / 1000:.1f}k tokens/s" if rate else ""
    norm = "" if state.grad_norm is None else f"norm {state.grad_norm:.2f}"
    if state.batch_margin is not None:
        norm += f", margin {state.batch_margin:.2f}"
    points = state.loss_history.points
    if width + 4 < _WIDE:
        room = height - 1 if height >= 5 else height
        lines = _plot("loss", loss, norm, points, width, room, "loss")
        if room < height:
            history = [y for _, y in state.rate_history.points]
            spark = sparkline(history, max(4, width - len(speed) - 8))
            lines.append(clip([("speed ", "dim"), (speed + " ", "value"), (spark, "rate")], width))
        return lines
    left = (width - 2) * 3 // 5
    right = width - 2 - left
    mfu = state.progress.get("mfu")
    share = "" if mfu is None else f"MFU {mfu:.0%}"
    ours = _plot("loss", loss, norm, points, left, height, "loss")
    theirs = _plot(
        "speed", speed, share, state.rate_history.points, right, height, "rate", area=True
    )
    return [[*a, ("  ", ""), *b] for a, b in zip(ours, theirs, strict=True)]


def _plot(
    title: str,
    value: str,
    note: str,
    points: Sequence[Point],
    width: int,
    height: int,
    style: str,
    *,
    area: bool = False,
) -> list[Line]:
    """A title with the latest value, then a chart with its axis on the left, `height` lines."""
    heading = pad([(f"{title} ", "dim"), (value, "value"), (f"  {note}", "dim")], width)
    if not points:
        waiting = pad([("waiting for the first steps", "dim")], width)
        blank = pad([], width)
        return [heading, *[waiting if n == (height - 1) // 2 else blank for n in range(height - 1)]]
    axis = 7
    chart = line_chart(points, width - axis, height - 1, area=area)
    lines = [heading]
    for number, row in enumerate(chart.rows):
        label = ""
        if number == 0:
            label = _short(chart.high)
        elif number == len(chart.rows) - 1:
            label = _short(chart.low)
        elif number == len(chart.rows) // 2 and len(chart.rows) >= 7:
            label = _short(chart.high - (chart.high - chart.low) * (number + 0.5) / height)
        pieces: Line = [(f"{label:>{axis - 2}} ", "dim"), ("▏", "frame")]
        pieces += [(text, ("", f"{style} raw", style)[layer]) for text, layer in row]
        lines.append(pieces)
    return lines


def _facts(state: RunState, width: int, now: float) -> list[Line]:
    """The most important first: a small window drops the last."""
    progress, lines = state.progress, []
    if state.preferring or (state.pair_validations and not state.ready):
        lines.append(_pairs(state, width))
    elif state.validations:
        lines.append(_validation(state, width))
    machine: Line = []
    if "memory_bytes" in progress:
        machine += [("memory ", "dim"), (gigabytes(progress["memory_bytes"]), "value")]
        limit = progress.get("memory_limit_bytes")
        if limit and width >= 60:
            machine.append((f" of {gigabytes(limit)}", "dim"))
        wait = progress["data_wait"]
        machine += [("  data wait ", "dim"), (f"{wait:.1%}", "warn" if wait > 0.1 else "value")]
        if 56 <= width < _WIDE - 4:
            machine += [("  MFU ", "dim"), (f"{progress['mfu']:.0%}", "value")]
    if state.skipped:
        machine += [("  skipped ", "dim"), (f"{state.skipped:,}", "value")]
    saved: Line = [("saved ", "dim"), (state.saved or "nothing yet", "value")]
    if state.saved_time is not None:
        saved.append((f" {duration(max(0.0, now - state.saved_time))} ago", "dim"))
    if machine and length(machine) + 2 + length(saved) <= width:
        lines.append(clip([*machine, ("  ", ""), *saved], width))
    else:
        lines += [clip(part, width) for part in (machine, saved) if part]
    if state.scores:
        told: Line = [("benchmarks ", "dim"), ("  ".join(state.scores), "value")]
        lines.append(clip(told, width))
    if len(state.mixture) > 1:
        lines.append(_mixture(state, width))
    return lines


def _validation(state: RunState, width: int) -> Line:
    measure, values = state.measure
    line: Line = [(f"{measure} ", "dim"), (f"{values[-1]:.4f}", "value")]
    best = min(values)
    if values[-1] > best:
        line.append((f" (best {best:.4f})", "dim"))
    spark = sparkline(values, min(24, max(6, width // 4)))
    if len(values) > 1:
        line += [(" ", ""), (spark, "bits")]
    if len(state.each_validation) > 1 and width >= 60:
        each = "  ".join(f"{name} {value:.4f}" for name, value in state.each_validation.items())
        line.append((f"  {each}", "dim"))
    return clip(line, width)


def _pairs(state: RunState, width: int) -> Line:
    """How many held-out pairs are told right, and by how much; before any, the last batch's."""
    if not state.pair_validations:
        right, margin = state.batch_accuracy, state.batch_margin
        batch: Line = [("pairs told right ", "dim"), (f"{right:.1%}", "value")]
        return clip([*batch, (f" of the last batch, margin {margin:.3f}", "dim")], width)
    values = [value for _, value in state.pair_validations]
    line: Line = [("held-out pairs told right ", "dim"), (f"{values[-1]:.1%}", "value")]
    if values[-1] < max(values):
        line.append((f" (best {max(values):.1%})", "dim"))
    if state.pair_margin is not None:
        mean, low, high = state.pair_margin
        line += [("  margin ", "dim"), (f"{mean:.3f}", "value")]
        if width >= 60:
            # Without the reference's own zero before the first step, which says nothing.
            effect = ", no effect" if low <= 0 <= high and len(values) > 1 else ""
            line.append((f" ({low:.3f} to {high:.3f}{effect})", "dim"))
    if len(values) > 1:
        spark = sparkline(values, min(24, max(6, width // 4)))
        line += [(" ", ""), (spark, "bits")]
    return clip(line, width)


def _mixture(state: RunState, width: int) -> Line:
    stage = state.stage_record
    asked = stage["mixture"] if stage else {}
    line: Line = [("mixture ", "dim")]
    for name, share in state.mixture.items():
        line += [(f"{name} ", ""), (f"{share:.1%}", "value")]
        if name in asked:
            line.append((f" of {asked[name]:.1%}", "dim"))
        line.append(("  ", ""))
    return clip(line, width)


def _sample(state: RunState, width: int, rows: int) -> list[Line]:
    if not state.samples or rows < 2:
        return []
    # Prompts take turns, so that each is seen.
    latest = [sample for sample in state.samples if sample[0] == state.samples[-1][0]]
    step, prompt, text = latest[int(state.step) // 50 % len(latest)]
    between = " → " if state.chats else ""
    shown = f"{prompt}{between}{text}".replace("\r", "").replace("\n", "↵").replace("\t", " ")
    shown = printable(shown)
    lines: list[Line] = [[(f"sample at step {step:,}", "dim")]]
    prefix = len((prompt + between).replace("\r", ""))
    for number, piece in enumerate(wrap(shown, width - 2)[: rows - 1]):
        start = prefix if number == 0 else 0
        lines.append([("  ", ""), (piece[:start], "accent"), (piece[start:], "text")])
    return lines


def _alerts(alerts: Sequence[Alert], width: int, state: RunState, height: int) -> list[Line]:
    lines: list[Line] = []
    roomy = height >= 30
    for alert in list(alerts)[: 2 if roomy else 1]:
        lasting = alert in state.finder.active
        mark, style = ("▲ ", "warn") if lasting else ("△ ", "dim")
        message = f"step {alert.step:,}: {alert.message}"
        told = shortened(wrap(message, width - 2), 2)
        lines += [[(mark if n == 0 else "  ", style), (t, style)] for n, t in enumerate(told)]
        if lasting:
            todo = shortened(wrap(alert.action, width - 2), 3)
            lines += [[("  ", ""), (t, "action")] for t in todo]
    return lines


def _top(state: RunState, width: int) -> Line:
    environment = state.environment
    compiled = "compiled" if environment.get("compile") else "not compiled"
    devices = environment.get("processes", 1)
    where = f"{environment.get('device', '')} {environment.get('dtype', '')}, {compiled}"
    if devices > 1:
        where = f"{devices} × {where}"
    size = f"{tokens_text(state.parameters)} parameters" if state.parameters else ""
    notes = " · ".join(note for note in (size, where) if note.strip(", "))
    return titled(state.run or state.name, notes, width, least=size)


def _short(value: float) -> str:
    if abs(value) >= 999.5:
        return tokens_text(value)
    return f"{value:.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"
