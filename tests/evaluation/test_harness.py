"""Our model for lm-evaluation-harness beside the harness's own `hf` model, answer by answer."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from llamita.data.chat_template import ChatTemplate, chat_template
from llamita.data.tokenizer import load_tokenizer
from llamita.errors import UserError
from llamita.model.huggingface import load_model
from tests.evaluation.tiny_models import KINDS, TEXTS, write_tiny_model

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from llamita.evaluation import harness
from llamita.evaluation.generation_settings import wanted_of
from llamita.evaluation.harness import TRUNCATED, HarnessModel

LONGEST = 128
ITEMS = 100  # of each shared set


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), request.param, longest=LONGEST)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> HFLM:
    # Without its cache of logits, which takes the wrong row where targets of different lengths
    # meet in one text (0.4.13: `Collator.get_cache` hands on all rows of the longest).
    return HFLM(
        pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, logits_cache=False
    )


def _ours(folder: Path, **settings: Any) -> HarnessModel:
    tokenizer = load_tokenizer(folder)
    settings.setdefault("template", chat_template(tokenizer))
    return HarnessModel(load_model(folder), tokenizer, name="tiny", **settings)


def _asked(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=number)
        for number, each in enumerate(arguments)
    ]


PAIRS = [
    *((TEXTS[0], ending) for ending in (" He waves.", " He falls.\nThe end", " He", "Falls")),
    *((f"{TEXTS[2].strip()}\n\n{TEXTS[1]}", letter) for letter in (" A", " B", " C", " D")),
    ("", "A man is"),
    ("", "</s>A man"),
    ("<s>A man is", " standing"),
    ("</s>A man is", " standing"),
    ("A man  ", "cleaning"),
    (TEXTS[1] * 5, " Paris"),
    (TEXTS[4], " 日本"),
    ("A man", " is"),
    ("A man", " is"),
]


def test_likelihoods(folder: Path, theirs: HFLM) -> None:
    ours = _ours(folder)
    asked = _asked("loglikelihood", PAIRS)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    found = ours.loglikelihood(asked)
    for got, wanted, pair in zip(found, expected, PAIRS, strict=True):
        assert got[0] == pytest.approx(wanted[0], abs=1e-4), pair
        assert got[1] == wanted[1], pair
    assert ours.counts[TRUNCATED] == 1


def test_tokens(folder: Path, theirs: HFLM) -> None:
    ours = _ours(folder)
    for text in (*TEXTS, "<s>A man", "</s>A man", "A man</s> is", " ", "", "<s>"):
        for adds in (None, True, False):
            assert ours.tok_encode(text, adds) == theirs.tok_encode(text, adds), (text, adds)
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id
    assert ours.max_length == theirs.max_length == LONGEST


def test_whole_texts(folder: Path, theirs: HFLM) -> None:
    texts = [(text,) for text in (*TEXTS, TEXTS[1] * 8, "", "a")]
    asked = _asked("loglikelihood_rolling", texts)
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    # Hundreds of tokens are summed, by the harness in float32.
    assert _ours(folder).loglikelihood_rolling(asked) == pytest.approx(expected, abs=5e-4)


def test_what_requests_come_to_is_what_is_scored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, scored = _ours(folder), []
    score = harness.score_continuations

    def watched(model: Any, asked: Any, **settings: Any) -> Any:
        scored.extend(asked)
        return score(model, asked, **settings)

    monkeypatch.setattr(harness, "score_continuations", watched)
    pairs = _asked("loglikelihood", PAIRS)
    whole = _asked("loglikelihood_rolling", [(text,) for text in (*TEXTS, TEXTS[1] * 8)])
    ours.loglikelihood(pairs)
    ours.loglikelihood_rolling(whole)
    assert ours.continuations([*whole, *pairs]) == scored


def _free(theirs: HFLM, prompt: str, count: int = 24) -> str:
    request = (prompt, {"until": [], "max_gen_toks": count})
    text: str = theirs.generate_until(_asked("generate_until", [request]), disable_tqdm=True)[0]
    return text


def test_texts(folder: Path, theirs: HFLM) -> None:
    written = _free(theirs, TEXTS[0])
    # Two characters that are whole: the random model writes broken ones, too.
    found = re.search(r"[!-~]{2}", written[3:])
    assert found is not None
    stop = found[0]
    asked = _asked(
        "generate_until",
        [
            *((text, {"until": ["\n\n"], "max_gen_toks": 12}) for text in TEXTS),
            (TEXTS[0], {"until": [stop, "\n\n"], "max_gen_toks": 24}),
            (TEXTS[0], {"until": stop, "max_gen_toks": 24, "do_sample": False}),
            (TEXTS[1] * 5, {"until": ["\n\n"], "max_gen_toks": 20, "temperature": 0.0}),
        ],
    )
    expected = theirs.generate_until(asked, disable_tqdm=True)
    ours = _ours(folder, slots=3)
    assert ours.generate_until(asked) == expected
    assert expected[5] == written.split(stop)[0]
    assert ours.counts[TRUNCATED] == 1


def test_special_tokens_end_a_text(folder: Path) -> None:
    """A stop string that is a special token's, and the model's end, by their ids."""
    ours = _ours(folder)
    wanted = wanted_of({"until": ["<s>"], "max_gen_toks": 8}, {"eos_token_id": [2, 7]})
    request = ours._request(ours.tok_encode("A man"), wanted)
    assert request.stop_ids == {1, 2, 7}


def test_drawn_texts(folder: Path) -> None:
    kwargs = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    asked = _asked("generate_until", [(TEXTS[0], kwargs)] * 3)
    first = _ours(folder).generate_until(asked)
    assert len(set(first)) > 1
    assert _ours(folder).generate_until(asked) == first
    assert _ours(folder, seed=5).generate_until(asked) != first


CHATS = [
    [{"role": "user", "content": " Hi there "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "The answer is"},
    ],
]
STRIPPING = (
    "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ (m.content | trim) ~ '\n' }}{% endfor %}"
)


@pytest.mark.parametrize("source", [None, STRIPPING])
def test_chat_template(folder: Path, theirs: HFLM, source: str | None) -> None:
    ours = _ours(folder)
    own = theirs.tokenizer.chat_template
    if source is not None:
        ours.template = ChatTemplate("stripping", source)
    theirs.tokenizer.chat_template = source or own
    try:
        for chat in CHATS:
            for prompt in (True, False):
                expected = theirs.apply_chat_template([dict(each) for each in chat], prompt)
                assert ours.apply_chat_template(chat, prompt) == expected
    finally:
        theirs.tokenizer.chat_template = own
    assert ours.chat_template(True) == ours.template.source
    assert ours.chat_template(False) is None


def test_a_refused_system_message_is_left_out(folder: Path) -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    ours = _ours(folder, template=ChatTemplate("refusing", refusing))
    assert ours.apply_chat_template(CHATS[1]) == "HiThe answer is"
    assert ours.counts == {"system messages left out": 1}


class _Kept:
    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[Any, ...], Any]] = []

    def add_partial(self, method: str, arguments: Any, answer: Any) -> None:
        self.told.append((method, tuple(arguments), answer))


def test_answers_are_told_to_the_cache(folder: Path) -> None:
    ours = _ours(folder, batch_tokens=40)
    ours.set_cache_hook(kept := _Kept())
    found = ours.loglikelihood(_asked("loglikelihood", PAIRS))
    told = {arguments: answer for _, arguments, answer in kept.told}
    assert [told[pair] for pair in PAIRS] == found
    assert len(kept.told) == len(PAIRS)
    kept.told.clear()
    request = ("A man", {"until": [], "max_gen_toks": 4})
    texts = ours.generate_until(_asked("generate_until", [request]))
    assert kept.told == [("generate_until", request, texts[0])]


def test_progress(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    ours = _ours(folder, batch_tokens=40, progress=lambda done, of: steps.append((done, of)))
    ours.loglikelihood(_asked("loglikelihood", PAIRS))
    assert steps[-1] == (len(PAIRS), len(PAIRS))
    assert len(steps) > 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"until": 3}, "until 3: give a string or a list"),
        ({"until": ["\n", ""]}, "an empty string in it"),
        ({"num_beams": 4}, "not searched in beams"),
        ({"temprature": 1.0}, "no setting 'temprature'.*temperature"),
        ({"do_sample": True, "temperature": 0.0}, "give one above 0"),
        ({"max_gen_toks": "many"}, "max_gen_toks 'many': give a number"),
        ({"max_gen_toks": LONGEST}, "lower max_gen_toks"),
    ],
)
def test_bad_settings(folder: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ours(folder).generate_until(_asked("generate_until", [("A man", kwargs)]))


def test_what_a_model_lacks(folder: Path) -> None:
    ours = _ours(folder, template=None)
    with pytest.raises(UserError, match="no chat template"):
        ours.apply_chat_template(CHATS[0])
    with pytest.raises(UserError, match="adds no token"):
        ours.loglikelihood(_asked("loglikelihood", [("A man", "")]))
    with pytest.raises(UserError, match="max_length"):
        _ours(folder, max_length=LONGEST + 1)


def _write_task(folder: Path, name: str, docs: list[dict[str, Any]], **settings: Any) -> None:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 0},
        **settings,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML


def _evaluated(model: Any, folder: Path, names: list[str], limit: int | None = None) -> Any:
    found = simple_evaluate(
        model=model,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        limit=limit,
    )
    answers = {
        name: [
            [answer for (answer,) in sample["resps"]]
            for sample in sorted(found["samples"][name], key=lambda each: each["doc_id"])
        ]
        for name in names
    }
    scores = {
        name: {key: found["results"][name][key] for key in ("acc,none", "acc_norm,none")}
        for name in names
    }
    return answers, scores


def _write_shared_tasks(shared: Path, folder: Path) -> list[str]:
    evals = shared / "data/evals"
    names = ("hellaswag_100.jsonl", "mmlu_dev_cot.jsonl")
    stories, questions = (
        [json.loads(line) for line in (evals / name).read_text(encoding="utf-8").splitlines()]
        for name in names
    )
    for story in stories:
        story["query"] = f"{story['activity_label']}: {story['ctx']}"
    _write_task(
        folder,
        "stories",
        stories,
        doc_to_text="{{query}}",
        doc_to_choice="{{endings}}",
        doc_to_target="expected_index",
    )
    _write_task(
        folder,
        "questions",
        [{**question, "cot": ""} for question in questions],
        doc_to_text="{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
        "D. {{choices[3]}}\nAnswer:",
        doc_to_choice=["A", "B", "C", "D"],
        doc_to_target="answer",
        num_fewshot=3,
        fewshot_split="test",
        fewshot_config={"sampler": "first_n"},
    )
    return ["stories", "questions"]


@pytest.mark.slow
def test_tasks(folder: Path, theirs: HFLM, tmp_path: Path, monkeypatch) -> None:
    """Through the harness's evaluator, from its tasks' files to its scores."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    docs = [
        {"query": f"A man is standing {where}. He", "endings": ["waves", "falls down", "is", "B"]}
        for where in ("on a ladder", "by the window", "in Paris")
    ]
    _write_task(
        tmp_path,
        "tiny",
        [{**doc, "label": number} for number, doc in enumerate(docs)],
        doc_to_text="{{query}}",
        doc_to_choice="{{endings}}",
        doc_to_target="label",
    )
    answers, scores = _evaluated(_ours(folder), tmp_path, ["tiny"])
    expected, their_scores = _evaluated(theirs, tmp_path, ["tiny"])
    _compare(answers, expected, 1e-4)
    assert scores == their_scores


def _compare(answers: Any, expected: Any, tolerance: float) -> None:
    for name in expected:
        for ours, theirs in zip(answers[name], expected[name], strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one[0] == pytest.approx(other[0], abs=tolerance)
                assert bool(one[1]) == bool(other[1])


@pytest.mark.slow
def test_smollm2(shared_dir: Path, tmp_path: Path, monkeypatch) -> None:
    """The published model on the shared items: the same likelihoods and the same accuracies.

    `hf` takes its softmax in float64: in float32 a sum over 49,152 tokens errs by 2e-5 a token and
    always in one direction, which long endings add up to 1.5e-3.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    named = os.environ.get("LLAMITA_SMOLLM2_GGUF")
    if not named:
        pytest.skip("no SmolLM2 weights: set LLAMITA_SMOLLM2_GGUF")
    pytest.importorskip("accelerate", reason="Transformers needs accelerate to read a GGUF file")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    gguf, directory = Path(named), tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
    names = _write_shared_tasks(shared_dir, tmp_path)
    theirs = HFLM(
        pretrained=str(directory),
        device="cpu",
        dtype="float32",
        batch_size=4,
        softmax_dtype="float64",
    )
    expected, their_scores = _evaluated(theirs, tmp_path, names, ITEMS)
    del theirs
    answers, scores = _evaluated(_ours(directory), tmp_path, names, ITEMS)
    _compare(answers, expected, 1e-4)
    assert scores == their_scores
