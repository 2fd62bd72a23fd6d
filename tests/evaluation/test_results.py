"""Results files: lm-eval reads ours, we read lm-eval's, and nothing is lost on the way."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamita.errors import UserError
from llamita.evaluation import results as results_module
from llamita.evaluation.results import (
    Evaluation,
    Missing,
    TaskScore,
    group_score,
    load_evaluation,
    save_evaluation,
    unique_ids,
)

DATE = "2026-03-01T14:05:09.250000+00:00"


def score(task: str = "hellaswag", metric: str = "acc_norm", **changes: Any) -> TaskScore:
    values = changes.pop("values", (1.0, 0.0, 1.0, 1.0))
    fields: dict[str, Any] = {
        "ids": tuple(f"{task}-{row:02x}" for row in range(len(values))),
        "chance": 0.25,
        "num_fewshot": 0,
        "version": "1.0",
        "harness": "lm-evaluation-harness 0.4.13",
        "available": 10042,
        "config": {"task": task, "doc_to_text": "{{query}}", "target_delimiter": " "},
    }
    return TaskScore(task, metric, values, **{**fields, **changes})


def sample(number: int) -> dict[str, Any]:
    """An item as simple_evaluate hands it over, before anything is made text of."""
    return {
        "doc_id": number,
        "doc": {"query": f"Frage {number}: größer?", "gold": 1},
        "target": 1,
        "arguments": [("ctx", " yes"), ("ctx", " no")],
        "resps": [[(-1.5, False)], [(-0.5, True)]],
        "filtered_resps": [(-1.5, False), (-0.5, True)],
        "prompt_hash": f"p{number}",
        "target_hash": f"t{number}",
    }


def evaluation(*scores: TaskScore, **changes: Any) -> Evaluation:
    fields: dict[str, Any] = {
        "model": "runs/tiny/final",
        "fingerprint": "9c0f",
        "tokens": 2_000_000_000,
        "missing": (Missing("drop", "no data offline"),),
        "settings": {"limit": 4, "chat_template": None, "seed": 1234},
        "versions": {"llamita": "0.1.0", "lm_eval": "0.4.13"},
        "date": DATE,
        "counts": {"truncated contexts": 3},
    }
    return Evaluation(scores=scores or (score(),), **{**fields, **changes})


# -- ours ------------------------------------------------------------------------------------------


def everything() -> Evaluation:
    """Two metrics of a task, two filters of another, a group, a ratio, marks of contamination."""
    plain = score(samples=tuple(map(sample, range(4))), contaminated=frozenset({"hellaswag-01"}))
    subjects = [
        score(f"mmlu_{name}", "acc", values=values, group="mmlu", num_fewshot=5)
        for name, values in (("anatomy", (1.0, 0.0)), ("virology", (1.0, 1.0, 0.0, 0.0, 0.0, 1.0)))
    ]
    filters = [
        score("gsm8k", f"exact_match,{name}", values=values, chance=None)
        for name, values in (("strict-match", (0.0, 0.0)), ("flexible-extract", (0.0, 1.0)))
    ]
    text = score(
        "held_out",
        "bits_per_byte",
        values=(900.0, 1200.5),
        weights=(1000.0, 1100.0),
        chance=None,
        higher_is_better=False,
    )
    other = replace(plain, metric="acc", values=(0.0, 0.0, 1.0, 0.0))
    return evaluation(plain, other, *subjects, *filters, text)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = everything()
    path = save_evaluation(saved, tmp_path / "out")
    assert path == tmp_path / "out" / "results_2026-03-01T14-05-09.250000+00-00.json"
    for place in (path, tmp_path / "out", tmp_path):
        loaded = load_evaluation(place)
        assert loaded == saved
    assert loaded.scores[0].samples[2]["doc"] == sample(2)["doc"]
    assert loaded.scores[0].config["target_delimiter"] == " "
    assert [each.estimate for each in loaded.scores] == [each.estimate for each in saved.scores]


def test_a_crash_while_writing_leaves_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples come first: without them nothing says that there are results."""
    write = results_module.replace_synced

    def failing(path: Path, text: str) -> None:
        if "samples_gsm8k" in path.name:
            raise UserError("the disk is full")
        write(path, text)

    monkeypatch.setattr(results_module, "replace_synced", failing)
    with pytest.raises(UserError, match="disk is full"):
        save_evaluation(everything(), tmp_path)
    assert list(tmp_path.glob("samples_hellaswag_*"))
    with pytest.raises(UserError, match=r"holds no results_….json"):
        load_evaluation(tmp_path)


def test_the_newest_of_a_folder_and_no_guess_between_models(tmp_path: Path) -> None:
    save_evaluation(evaluation(), tmp_path / "one")
    later = evaluation(date="2026-03-02T00:00:00+00:00", counts={})
    save_evaluation(later, tmp_path / "one")
    assert load_evaluation(tmp_path) == later
    save_evaluation(evaluation(), tmp_path / "two")
    with pytest.raises(UserError, match=r"results of 2 models: name one of .*one, .*two"):
        load_evaluation(tmp_path)


def test_a_document_that_comes_twice_is_two_items(tmp_path: Path) -> None:
    ids = unique_ids(["aa", "bb", "aa", "aa"])
    assert ids == ("aa", "bb", "aa#2", "aa#3")
    path = save_evaluation(evaluation(score(ids=ids)), tmp_path)
    (samples,) = tmp_path.glob("samples_*.jsonl")
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [each["doc_hash"] for each in records] == ["aa", "bb", "aa", "aa"]
    assert load_evaluation(path).scores[0].ids == ids


def test_one_item_has_no_standard_error_and_the_file_stays_json(tmp_path: Path) -> None:
    one = score(values=(0.3,), metric="f1", chance=None)
    path = save_evaluation(evaluation(one), tmp_path)
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert document["results"]["hellaswag"]["f1_stderr,none"] == "N/A"
    assert load_evaluation(path).scores == (one,)


def test_whatever_an_item_holds_is_written(tmp_path: Path) -> None:
    """Arrays and dates out of parquet, a missing number, half a character out of a broken file."""
    doc = {
        "choices": np.array(["a", "b"]),
        "score": np.float32(0.5),
        "none": math.nan,
        "day": date(2026, 3, 1),
        "half": "\ud83d",
    }
    one = score(samples=tuple({**sample(row), "doc": doc} for row in range(4)))
    path = save_evaluation(evaluation(one), tmp_path)
    (samples,) = tmp_path.glob("samples_*")
    line = samples.read_bytes().splitlines()[0]
    found = json.loads(line.decode("utf-8"), parse_constant=pytest.fail)["doc"]
    assert found == {
        "choices": ["a", "b"],
        "score": 0.5,
        "none": None,
        "day": "2026-03-01",
        "half": "\ud83d",
    }
    assert load_evaluation(path).scores == (one,)


def test_a_score_cannot_be_wrong_in_silence() -> None:
    with pytest.raises(ValueError, match="not one item"):
        score(values=())
    with pytest.raises(ValueError, match="no finite number"):
        score(values=(1.0, math.nan))
    with pytest.raises(ValueError, match="4 scores and 3 ids"):
        score(ids=("a", "b", "c"))
    with pytest.raises(ValueError, match="an id stands for two"):
        score(ids=("a", "b", "c", "a"))
    with pytest.raises(ValueError, match="weights belong to"):
        score(metric="bits_per_byte")
    with pytest.raises(UserError, match=r"hellaswag \(acc_norm\) was scored twice"):
        save_evaluation(evaluation(score(), score()), Path("nowhere"))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*nothing"):
        load_evaluation(tmp_path / "nothing")
    broken = tmp_path / "results_2026.json"
    broken.write_text('{"results": {')
    with pytest.raises(UserError, match=r"results_2026.json is not JSON"):
        load_evaluation(broken)
    broken.write_text('{"loss": 1}')
    with pytest.raises(UserError, match="holds no results"):
        load_evaluation(broken)
    path = save_evaluation(evaluation(), tmp_path / "whole")
    (samples,) = path.parent.glob("samples_*")
    samples.write_text(samples.read_text() + "{oops\n")
    with pytest.raises(UserError, match=r"samples_hellaswag_.*, line 5 is not JSON"):
        load_evaluation(path)
    document = json.loads(path.read_text())
    document["llamita"]["format"] = 2
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="written by a newer llamita, in format 2"):
        load_evaluation(path)
    document["llamita"] = {"scores": [{"task": "hellaswag"}]}
    path.write_text(json.dumps(document))
    samples.unlink()
    with pytest.raises(UserError, match="not as llamita or lm_eval writes it"):
        load_evaluation(path)


def test_samples_of_another_run_are_not_taken_for_its_own(tmp_path: Path) -> None:
    path = save_evaluation(evaluation(), tmp_path)
    (samples,) = tmp_path.glob("samples_*")
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[:-1]) + "\n")
    loaded = load_evaluation(path)
    assert loaded.scores == ()
    assert loaded.missing[-1].task == "hellaswag (acc_norm)"
    assert "0.75, is not the mean of its items" in loaded.missing[-1].why


# -- estimates -------------------------------------------------------------------------------------


def test_a_group_weights_every_item_alike() -> None:
    """MMLU's score: 2 of 8 right is 1/4, though the subjects' mean is (1/2 + 1/6) / 2."""
    small = score("mmlu_a", "acc", values=(1.0, 0.0), group="mmlu", chance=0.25)
    large = score("mmlu_b", "acc", values=(1.0, 0, 0, 0, 0, 0), group="mmlu", chance=0.5)
    found = group_score([small, large])
    assert found.task == "mmlu"
    assert found.estimate.value == pytest.approx(2 / 8)
    assert found.chance == pytest.approx((2 * 0.25 + 6 * 0.5) / 8)
    assert found.ids[2] == "mmlu_b/mmlu_b-00"
    assert evaluation(small, large).score("mmlu", "acc") == found
    with pytest.raises(ValueError, match="one group"):
        group_score([small, replace(large, group="bbh")])


def test_chance_and_contamination() -> None:
    """Wilson's interval of 10 of 20 begins at 0.299: above 1/4, not above 1/3."""
    half = score(values=(1.0, 0.0) * 10)
    assert not half.not_above_chance
    assert replace(half, chance=1 / 3).not_above_chance
    assert not replace(half, chance=None).not_above_chance
    assert half.clean is None
    seen = replace(half, contaminated=frozenset(half.ids[::2]))
    assert seen.clean is not None
    assert seen.clean.values == (0.0,) * 10
    assert replace(half, contaminated=frozenset(half.ids)).clean is None


def test_chance_is_the_mean_over_items_of_different_choices(tmp_path: Path) -> None:
    """Two items of two choices and two of four: (1/2 + 1/2 + 1/4 + 1/4) / 4."""
    choices = (("ctx", " a"), ("ctx", " b"), ("ctx", " c"), ("ctx", " d"))
    records = tuple({**sample(row), "arguments": choices[: 2 + row // 2 * 2]} for row in range(4))
    asked = score(samples=records, config={"output_type": "multiple_choice"})
    path = save_evaluation(evaluation(asked), tmp_path)
    document = json.loads(path.read_text())
    del document["llamita"]  # As lm-eval would have written it.
    path.write_text(json.dumps(document))
    assert load_evaluation(path).scores[0].chance == pytest.approx(3 / 8)


def test_ratios_and_perplexities() -> None:
    """exp(Σ nats / Σ tokens) = exp(30 / 10); its standard error is e³ times that of the 3."""
    nats = score(
        metric="perplexity", values=(10.0, 20.0), weights=(4.0, 6.0), higher_is_better=False
    )
    bits = replace(nats, metric="bits_per_byte")
    assert bits.estimate.value == pytest.approx(3.0)
    assert nats.estimate.value == pytest.approx(math.exp(3.0))
    assert nats.estimate.stderr == pytest.approx(math.exp(3.0) * bits.estimate.stderr)
    assert nats.estimate.low == pytest.approx(math.exp(bits.estimate.low))


# -- lm-eval ---------------------------------------------------------------------------------------

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
num_fewshot: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 2.5}}
"""
ANSWERS = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
num_fewshot: 0
generation_kwargs: {{until: ["\\n"]}}
filter_list:
  - {{name: strict, filter: [{{function: take_first}}]}}
  - name: digits
    filter: [{{function: regex, regex_pattern: "([0-9]+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """
task: prose
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""
GROUP = """
group: both
task: [first, second]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    """datasets neither fetches anything nor tells the hub what it loads."""
    import datasets
    import huggingface_hub

    with pytest.MonkeyPatch.context() as found:
        found.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        found.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        found.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield found


@pytest.fixture(scope="module")
def of_lm_eval(
    tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, Any]]:
    """The folder that lm-eval's own tracker filled, and what simple_evaluate returned."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.dummy import DummyLM
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("lm-eval")
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, choices in (("first", 4), ("second", 2)):
        rows = [
            {
                "question": f"{name} question {row}",
                "choices": [str(each) for each in range(choices)],
                "answer": row % choices,
            }
            for row in range(5 if choices == 4 else 8)
        ]
        rows.append(rows[0])  # The same document once more.
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tasks / f"{name}.yaml").write_text(CHOICES.format(name=name, data=data))
    for name, template in (("sums", ANSWERS), ("prose", ROLLING)):
        (tasks / f"{name}.yaml").write_text(template.format(data=folder / "first.jsonl"))
    (tasks / "both.yaml").write_text(GROUP)

    class Counting(DummyLM):
        tokenizer = None  # lm-eval's own dummy fetches one from the hub.

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [f"it is {row}" if row % 2 else str(row) for row, _ in enumerate(requests)]

    tracker = EvaluationTracker(output_path=str(folder / "out"))
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    # It asks pip and lscpu about this machine, which takes seconds.
    patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")
    found = simple_evaluate(
        model=Counting(),
        model_args={"pretrained": "someone/model"},
        tasks=["both", "sums", "prose"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        evaluation_tracker=tracker,
        bootstrap_iters=10,
    )
    assert found is not None
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=dict(found), samples=samples)
    for name, records in samples.items():
        tracker.save_results_samples(name, records)
    return folder / "out", found


def test_what_lm_eval_wrote_is_read(of_lm_eval: tuple[Path, dict[str, Any]]) -> None:
    """Every mean and standard error as lm-eval itself worked it out."""
    folder, found = of_lm_eval
    loaded = load_evaluation(folder)
    assert loaded.model == "someone/model"
    assert loaded.versions["lm_eval"] == found["lm_eval_version"]
    assert loaded.settings["random_seed"] == 0
    assert loaded.missing == ()
    known = {(each.task, each.metric): each for each in loaded.scores}
    assert set(known) == {
        *((task, metric) for task in ("first", "second") for metric in ("acc", "acc_norm")),
        ("sums", "exact_match,strict"),
        ("sums", "exact_match,digits"),
        *(("prose", name) for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")),
    }
    for (task, metric), each in known.items():
        name, _, chosen = metric.partition(",")
        theirs = found["results"][task]
        assert each.estimate.value == pytest.approx(theirs[f"{name},{chosen or 'none'}"])
        assert each.available == found["n-samples"][task]["original"]
        assert each.higher_is_better == found["higher_is_better"][task][name]
        if each.weights is None:
            stderr = theirs[f"{name}_stderr,{chosen or 'none'}"]
            assert each.estimate.stderr == pytest.approx(stderr)
        assert each.harness == f"lm-evaluation-harness {found['lm_eval_version']}"
    first = known["first", "acc"]
    assert first.version == "2.5"
    assert first.chance == pytest.approx(1 / 4)
    assert known["second", "acc_norm"].chance == pytest.approx(1 / 2)
    assert known["sums", "exact_match,digits"].chance is None
    assert first.ids[5] == f"{first.ids[0]}#2"
    assert first.samples[3]["doc"]["question"] == "first question 3"
    assert len(set(first.ids)) == 6


def test_a_group_scores_as_lm_eval_scores_it(of_lm_eval: tuple[Path, dict[str, Any]]) -> None:
    folder, found = of_lm_eval
    group = load_evaluation(folder).score("both", "acc")
    assert group is not None
    theirs = found["groups"]["both"]
    assert len(group.values) == theirs["sample_len"] == 15
    assert group.estimate.value == pytest.approx(theirs["acc,none"])
    # lm-eval leaves out what lies between the tasks' means; of two tasks alike that is little.
    assert group.estimate.stderr == pytest.approx(theirs["acc_stderr,none"], rel=0.1)


def test_a_group_that_is_no_mean_of_items_is_not_made_one(
    of_lm_eval: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """weight_by_size: false, as of some groups of lm-eval's, is the mean of the tasks' means."""
    folder = tmp_path / "out"
    shutil.copytree(of_lm_eval[0], folder)
    (path,) = folder.glob("*/results_*.json")
    document = json.loads(path.read_text())
    document["groups"]["both"]["acc,none"] += 0.01
    path.write_text(json.dumps(document))
    loaded = load_evaluation(path)
    assert loaded.groups == ()
    assert [each.task for each in loaded.missing] == ["both (acc)"]


def test_without_items_right_and_wrong_are_still_counted(
    of_lm_eval: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """What lm_eval writes without --log_samples: shares, out of so many."""
    (path,) = of_lm_eval[0].glob("*/results_*.json")
    bare = tmp_path / path.name
    shutil.copy(path, bare)
    loaded = load_evaluation(tmp_path)
    whole = load_evaluation(path).score("first", "acc")
    found = loaded.score("first", "acc")
    assert found is not None
    assert whole is not None
    assert found.estimate == whole.estimate
    assert found.ids == ()
    assert found.chance is None
    assert {each.task for each in loaded.missing} == {
        f"prose ({name})" for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
    }
    assert "--log_samples" in loaded.missing[0].why
    again = save_evaluation(loaded, tmp_path / "again")
    assert not list(again.parent.glob("samples_*"))
    assert load_evaluation(again).scores == loaded.scores


def test_lm_eval_reads_what_we_write(
    of_lm_eval: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """lm-eval's table of our file says what its table of its own says, number by number, and
    its tools find the samples, field by field."""
    from datasets import load_dataset
    from lm_eval.utils import (
        get_file_datetime,
        get_file_task_name,
        get_results_filenames,
        get_sample_results_filenames,
        make_table,
    )

    folder, found = of_lm_eval
    path = save_evaluation(load_evaluation(folder), tmp_path / "ours")
    ours = json.loads(path.read_text())

    def rows(document: dict[str, Any], column: str) -> list[list[str]]:
        lines = make_table(document, column).splitlines()[2:]
        found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        # Without versions of groups, which are lm-eval's own, and without the errors of ratios:
        # lm-eval draws those by lot, ours are worked out.
        found = [row[:1] + row[2:] if "both" in row[0] else row for row in found]
        return [row[:-1] if row[4] in results_module.WEIGHTED else row for row in found]

    assert len(rows(ours, "results")) == 10
    for mine, other in zip(rows(ours, "results"), rows(found, "results"), strict=True):
        assert mine[:7] == other[:7]
        if "both" not in mine[0]:
            assert mine == other
    assert rows(ours, "groups")[0][:6] == rows(found, "groups")[0][:6]

    names = [str(each) for each in path.parent.iterdir()]
    assert get_results_filenames(names) == [str(path)]
    samples = {
        get_file_task_name(Path(each).name): Path(each)
        for each in get_sample_results_filenames(names)
    }
    assert set(samples) == {"first", "second", "sums", "prose"}
    assert get_file_datetime(samples["sums"].name) in path.name
    for task, written in samples.items():
        (original,) = folder.glob(f"*/samples_{task}_*.jsonl")
        for mine, other in zip(
            written.read_text().splitlines(), original.read_text().splitlines(), strict=True
        ):
            one, two = json.loads(mine), json.loads(other)
            for name in results_module.WEIGHTED:
                assert one.pop(name, None) == pytest.approx(two.pop(name, None))
            assert list(one.items()) == list(two.items())
        table = load_dataset(
            "json", data_files=str(written), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert "doc_hash" in table.column_names
    (stated,) = folder.glob("*/results_*.json")
    assert ours["task_hashes"] == json.loads(stated.read_text())["task_hashes"]
