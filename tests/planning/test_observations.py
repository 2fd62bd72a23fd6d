"""What is read from tables and from runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamita.errors import UserError
from llamita.planning.observations import Columns, Observation, read_observations

TABLE = "N,D,loss\n7e7,1.4e9,3.5\n140000000,2_800_000_000,3.2\n"
VALUES = [(7e7, 1.4e9, 3.5), (1.4e8, 2.8e9, 3.2)]


def table(folder: Path, text: str, name: str = "runs.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def values(rows: tuple[Observation, ...]) -> list[tuple[float, float, float]]:
    return [(row.parameters, row.tokens, row.loss) for row in rows]


# -- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("runs.csv", TABLE),
        ("runs.csv", "\ufeff" + TABLE.replace("\n", "\r\n") + "\r\n"),
        ("runs.csv", "Model Size, Training tokens ,Val-Loss\n" + TABLE.partition("\n")[2]),
        ("runs.csv", 'seed,D,"N",l,note\n0,1.4e9,7e7,3.5,"a, b"\n1,2.8e9,1.4e8,3.2,\n'),
        ("runs.tsv", TABLE.replace(",", "\t")),
        (
            "runs.jsonl",
            '{"params": 7e7, "tokens": 1.4e9, "loss": 3.5}\n\n'
            '{"params": 140000000, "loss": 3.2, "tokens": "2.8e9", "x": null}',
        ),
    ],
)
def test_tables_as_people_write_them(name: str, text: str, tmp_path: Path) -> None:
    found = read_observations([table(tmp_path, text, name)])
    assert values(found.rows) == VALUES
    assert (found.loss, found.counts, found.warnings) == ("nats per token", "total", ())


def test_rows_know_their_line_and_group(tmp_path: Path) -> None:
    path = table(tmp_path, "N,D,loss,group\n1e6,1e7,4,a\n\n2e6,1e7,3.9, b \n")
    rows = read_observations([path]).rows
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:4"]
    assert [row.group for row in rows] == ["a", "b"]


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = table(tmp_path, "size,seen,loss,nll,trunk,N\n1e6,1e7,9,4,a,3\n")
    columns = Columns(parameters="size", tokens="seen", loss="nll", group="trunk")
    (row,) = read_observations([path], columns=columns).rows
    assert (row.parameters, row.tokens, row.loss, row.group) == (1e6, 1e7, 4, "a")


def test_units_of_the_loss(tmp_path: Path) -> None:
    bits = table(tmp_path, "N,D,bits_per_byte\n1e6,1e7,1.2\n", "bits.csv")
    nats = table(tmp_path, TABLE)
    assert read_observations([bits]).loss == "bits per byte"
    said = read_observations([nats], loss="nats per byte", counts="non-embedding")
    assert (said.loss, said.counts) == ("nats per byte", "non-embedding")
    with pytest.raises(UserError, match="one law has one unit of loss"):
        read_observations([bits, nats])
    assert len(read_observations([bits, nats], loss="bits per byte").rows) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("N,D,loss\n7e7,1e9,3.5\n7e7,1e9,inf\n", r"runs.csv:3: loss is 'inf', not a finite number"),
        ("N,D,loss\n7e7,1e9,3.5\n7e7,,3\n", "runs.csv:3: D is '', not a finite number"),
        ("N,D,loss\n70M,1e9,3.5\n", "runs.csv:2: N is '70M', not a finite number; write it as in"),
        ("N,D,loss\n7e7,-1e9,3.5\n", "runs.csv:2: D is '-1e9'; parameters, tokens and losses lie"),
        ("N,D,loss\n7e7,1e9,0\n", "runs.csv:2: loss is '0'; "),
        ("N,D,loss\n\n7e7,1e9\n", "runs.csv:3: 2 fields under 3 columns"),
        ("N,D,N\n7e7,1e9,3\n", "two columns are named 'N'"),
        ("N,steps,loss\n7e7,1e9,3\n", "no column for the tokens .*there are N, steps, loss"),
        ("N,D,loss,bpb\n7e7,1e9,3,1\n", "loss and bpb may all be the loss; choose with --loss"),
        ("N,D,loss\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_a_wrong_row_is_named_with_its_reason(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_observations([table(tmp_path, text)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"N": 1, "D": 2, "loss": 3}\n{"N": 1', "runs.jsonl:2: not JSON"),
        ("[1, 2, 3]", "runs.jsonl:1: not an object"),
        ('{"N": true, "D": 2, "loss": 3}', "N is True, not a finite number"),
        ('{"N": [1], "D": 2, "loss": 3}', r"N is \[1\], not a finite number"),
        ('{"N": 1, "D": 2, "loss": 3}\n{"N": 1, "D": 2}', "runs.jsonl:2: no column for the loss"),
    ],
)
def test_a_wrong_record_is_named_with_its_reason(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_observations([table(tmp_path, text, "runs.jsonl")])


def test_sources_that_are_neither_tables_nor_runs(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for source, message in (
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path / "folder", "is a directory without events.jsonl"),
        (table(tmp_path, TABLE, "runs.xlsx"), "a table is a .csv, .tsv or .jsonl file"),
    ):
        with pytest.raises(UserError, match=message):
            read_observations([source])
    with pytest.raises(UserError, match="name a table"):
        read_observations([])
    path = table(tmp_path, TABLE)
    with pytest.raises(UserError, match=r"runs\.csv is given twice"):
        read_observations([path, tmp_path / "folder" / ".." / "runs.csv"])
    whole = run(tmp_path / "a")
    with pytest.raises(UserError, match="is given twice"):
        read_observations([whole, whole / "events.jsonl"])


def test_options_that_say_what_is_not_there(tmp_path: Path) -> None:
    path = table(tmp_path, TABLE)
    with pytest.raises(UserError, match=r"no column 'Loss' \(--loss\).*Did you mean"):
        read_observations([path], columns=Columns(loss="Loss"))
    with pytest.raises(UserError, match="--loss-unit 'nats'"):
        read_observations([path], loss="nats")
    with pytest.raises(UserError, match="--counts 'embedding'"):
        read_observations([path], counts="embedding")


# -- runs -----------------------------------------------------------------------------------------


def stage(rate: float, end: float) -> dict[str, Any]:
    return {"name": "s", "learning_rate": rate, "learning_rate_at_end": end}


def run(
    folder: Path,
    *,
    tokens: int = 4096,
    bits: float | None = 1.5,
    start_from: str | None = None,
    first_step: int = 0,
    stages: list[dict[str, Any]] | None = None,
    ended: bool = True,
    datasets: str = "prose",
) -> Path:
    """Events as training writes them, as far as a law reads them."""
    events: list[dict[str, Any]] = [
        {
            "event": "start", "step": first_step, "start_from": start_from, "parameters": 1000,
            "stages": stages or [stage(1e-2, 1e-2), stage(1e-2, 1e-4)],
        },
        {"event": "step", "step": first_step + 1, "tokens": tokens // 2},
        {"event": "validation", "step": 1, "bits_per_byte": 9.0, "datasets": {datasets: 9}},
        {"event": "step", "step": first_step + 2, "tokens": tokens},
        {
            "event": "validation", "step": first_step + 2, "bits_per_byte": bits,
            "datasets": {datasets: bits}, "bytes": 1765,
        },
    ]  # fmt: skip
    if ended:
        events.append({"event": "end", "step": first_step + 2, "bits_per_byte": bits})
    folder.mkdir(parents=True)
    lines = "".join(json.dumps({**event, "time": 1.0}) + "\n" for event in events)
    (folder / "events.jsonl").write_text(lines)
    return folder


def test_a_run_is_one_observation(tmp_path: Path) -> None:
    whole = run(tmp_path / "a")
    for source in (whole, whole / "events.jsonl"):
        found = read_observations([source])
        assert values(found.rows) == [(1000, 4096, 1.5)]
        assert found.loss == "bits per byte"
        assert found.data == "held-out text of prose (1,765 bytes)"
        assert found.warnings == ()


def test_runs_that_are_no_observations_are_left_out_and_named(tmp_path: Path) -> None:
    good = run(tmp_path / "good")
    going = run(tmp_path / "going", ended=False)
    flat = run(tmp_path / "flat", stages=[stage(1e-2, 1e-2)])
    found = read_observations([going, good, flat])
    assert [row.where for row in found.rows] == [str(good)]
    assert found.warnings[0] == f"{going} is left out: no end is recorded"
    assert found.warnings[1].startswith(
        f"{flat} is left out: the learning rate has not decayed (it ends at 0.01 of at most 0.01)"
    )
    other = run(tmp_path / "other", ended=False)
    (warning,) = read_observations([going, other, good]).warnings
    assert warning == f"{going}, {other} are left out: no end is recorded"
    with pytest.raises(UserError, match="no run is left to fit"):
        read_observations([going, flat])


def test_a_last_stage_may_be_flat_where_an_earlier_one_decayed(tmp_path: Path) -> None:
    path = run(tmp_path / "a", stages=[stage(1e-2, 1e-3), stage(1e-3, 1e-3)])
    assert read_observations([path]).warnings == ()


def test_branches_share_their_trunks_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trunk = run(Path("runs/trunk"))
    early = run(Path("runs/early"), start_from="runs/trunk/step-10", first_step=10)
    late = run(Path("runs/late"), start_from=str(tmp_path / "runs/trunk"), first_step=20)
    twig = run(Path("runs/twig"), start_from="runs/late/step-21", first_step=21)
    other = run(Path("runs/other"))
    gone = run(Path("runs/gone"), start_from="elsewhere/trunk/step-5", first_step=5)
    rows = read_observations([trunk, early, late, twig, other, gone]).rows
    groups = [row.group for row in rows]
    assert len(set(groups[:4])) == 1
    assert len(set(groups)) == 3


def test_a_run_from_weights_of_unknown_history_is_refused(tmp_path: Path) -> None:
    path = run(tmp_path / "a", start_from="HuggingFaceTB/SmolLM2-135M")
    with pytest.raises(UserError, match="how many tokens those had seen; leave it out"):
        read_observations([path])


def test_a_run_without_a_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without a validation .*--validation 0\.01"):
        read_observations([run(tmp_path / "a", bits=None)])


def test_runs_of_different_text_are_told(tmp_path: Path) -> None:
    paths = [run(tmp_path / name, datasets=name) for name in ("prose", "code")]
    (warning,) = read_observations(paths).warnings
    assert "validated on different text" in warning
    assert str(paths[1]) in warning


def test_options_of_tables_have_no_effect_on_runs(tmp_path: Path) -> None:
    path = run(tmp_path / "a")
    with pytest.raises(UserError, match="--loss: only tables have columns"):
        read_observations([path], columns=Columns(loss="loss"))
    with pytest.raises(UserError, match="runs are in bits per byte; leave it out"):
        read_observations([path], loss="nats per token")
    with pytest.raises(UserError, match=r"config\.json cannot be read .*--counts total"):
        read_observations([path], counts="non-embedding")


def test_runs_that_were_trained(tiny_data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from tests.training.helpers import DECAY, STABLE, stage, tiny_recipe, trained

    steps = {"every_steps": 4, "keep_every_steps": 4}
    long = tiny_recipe(tiny_data, stages=[stage("stable", 6, STABLE)], checkpoints=steps)
    trunk = trained(long, tmp_path / "trunk")
    short = tiny_recipe(
        tiny_data,
        model=None,
        start_from=str(trunk.run / "step-4"),
        stages=[stage("decay", 3, DECAY)],
    )
    branch = trained(short, tmp_path / "branch")
    found = read_observations([trunk.run, branch.run])
    tensors = load_file(branch.final / "model.safetensors")
    total = sum(tensor.numel() for tensor in tensors.values())
    outer = sum(t.numel() for name, t in tensors.items() if "embed" in name or "lm_head" in name)
    # 4 steps of the trunk and 3 of its own, of 128 tokens.
    assert values(found.rows) == [(total, 7 * 128, branch.bits_per_byte)]
    assert found.rows[0].group == str(trunk.run.resolve())
    assert len(found.warnings) == 1
    assert "trunk is left out: the learning rate has not decayed" in found.warnings[0]
    assert found.data is not None
    assert "held-out text of prose, code" in found.data
    (row,) = read_observations([branch.run], counts="non-embedding").rows
    assert row.parameters == total - outer
