"""Which engine is taken and what it says of that; what is refused, and how it says so."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from llamita.architecture.config import ModelConfig
from llamita.data.chat_template import chat_template
from llamita.data.tokenizer import Tokenizer
from llamita.errors import UserError
from llamita.formats.exporting import export_model
from llamita.inference import engines, torch_engine
from llamita.inference.engine import Engine, Request, Stream
from llamita.inference.engines import end_ids, open_engine
from llamita.inference.sampling import Sampling
from llamita.model.huggingface import load_model, save_model
from tests.data.chats import MARKERS, byte_level
from tests.inference.written_models import random_decoder

pytest.importorskip("xllamacpp")
GREEDY = Sampling(temperature=0)


def quiet(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level(*MARKERS)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "small"
    decoder = random_decoder(tokenizer)
    save_model(folder, decoder, decoder.config)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(engines, "_may_have_gpu", lambda: False)
        yield


@contextmanager
def opened(model: str | Path, **asked: object) -> Iterator[Engine]:
    engine = open_engine(model, **{"say": quiet, **asked})  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        engine.close()


def ids(engine: Engine, text: str, count: int) -> list[int]:
    prompt = tuple(engine.tokenizer.encode(text))
    pieces = Stream(engine, Request(prompt, GREEDY, max_tokens=count))
    return [token.id for piece in pieces for token in piece.tokens]


def test_without_a_gpu_it_is_llama_cpp(model: Path) -> None:
    told: list[str] = []
    with opened(model, say=told.append, slots=2) as engine:
        assert engine.name == "llama.cpp"
        assert engine.about.startswith("llama.cpp, q8_0, context 8,192, ")
        assert engine.about.endswith(": no GPU here")
        assert (engine.slots, engine.context) == (2, 8192)
        assert len(ids(engine, "the user", 5)) == 5
    assert any("is written once as GGUF" in line for line in told)


def test_torch_leaves_no_helper_threads_with_the_caller(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders: list[threading.Thread] = []

    def noted(*given: object, **named: object) -> object:
        loaders.append(threading.current_thread())
        return load_model(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("llamita.model.huggingface.load_model", noted)
    with opened(model, engine="torch"):
        (loader,) = loaders
        assert loader is not threading.current_thread()
        assert not loader.is_alive()


def test_both_engines_write_the_same(model: Path) -> None:
    with opened(model, quantize="f32") as one, opened(model, engine="torch") as other:
        assert (one.name, other.name) == ("llama.cpp", "torch")
        assert ": f32 is asked for" in one.about
        assert other.about.endswith("float32 on cpu: as asked")
        assert one.end_ids == other.end_ids
        assert one.tokenizer.fingerprint == other.tokenizer.fingerprint
        assert ids(one, "the user", 20) == ids(other, "the user", 20)


def test_a_gguf_file_is_run_as_it_is(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    export_model(model, file, to="gguf", quantize="q4_0", say=quiet)
    before = file.read_bytes()
    with opened(file, context=300) as engine:
        assert engine.about.startswith("llama.cpp, own.gguf as it is, context 300 of 8,192, ")
        with opened(model, quantize="q4_0", context=300) as wanted:
            assert ids(engine, "the user", 12) == ids(wanted, "the user", 12)
    assert file.read_bytes() == before
    with opened(file, quantize="q8_0") as engine:
        assert engine.about.startswith("llama.cpp, q8_0, ")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"device": "cpu", "dtype": "float32"}, "torch, float32 on cpu: float32 is asked for"),
        ({"engine": "torch", "context": 64}, "torch, float32 on cpu: as asked"),
    ],
)
def test_what_is_torchs_takes_torch(model: Path, asked: dict[str, object], why: str) -> None:
    with opened(model, **asked) as engine:
        assert (engine.name, engine.about) == ("torch", why)
        assert engine.context == asked.get("context", 8192)


@pytest.mark.parametrize(
    ("units", "kind"),
    [
        (True, "bfloat16"),
        (
            False,
            "bfloat16 for one request and float32 for several (there are no bfloat16 units)",
        ),
    ],
)
def test_what_a_cpu_makes_of_bfloat16_is_said(
    model: Path, monkeypatch: pytest.MonkeyPatch, units: bool, kind: str
) -> None:
    monkeypatch.setattr(torch_engine, "_multiplies_bfloat16", lambda _device: units)
    with opened(model, dtype="bfloat16") as engine:
        assert engine.about == f"torch, {kind} on cpu: bfloat16 is asked for"


def test_auto_without_xllamacpp_is_torch_and_says_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _name: None)
    with opened(model) as engine:
        assert engine.name == "torch"
        assert "xllamacpp is not installed" in engine.about
        assert "pip install 'llamita[cpu]'" in engine.about


def test_auto_is_torch_where_the_model_cannot_be_had_as_gguf(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_named: object) -> Path:
        raise UserError("no such shape there")

    monkeypatch.setattr("llamita.formats.gguf_made.gguf_of", refuse)
    with opened(model) as engine:
        assert engine.name == "torch"
        assert engine.about.endswith("the model cannot be had as GGUF (no such shape there)")
    for asked in ({"engine": "llama.cpp"}, {"quantize": "q8_0"}):
        with pytest.raises(UserError, match="no such shape there"), opened(model, **asked):
            pass


def test_auto_on_a_gpu_is_torch(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice alone is tested: there is no GPU here."""
    monkeypatch.setattr(engines, "_may_have_gpu", lambda: True)
    monkeypatch.setattr("llamita.model.devices.choose_device", lambda _name: torch.device("cuda"))
    monkeypatch.setattr(engines, "_torch", lambda _asked, why: why)
    assert str(open_engine(model)) == "there is a GPU, cuda"
    monkeypatch.setattr("llamita.model.devices.choose_device", lambda _name: torch.device("cpu"))
    with opened(model) as engine:
        assert engine.name == "llama.cpp"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"engine": "lama.cpp"},
            "engine 'lama.cpp': there is auto, torch, llama.cpp. Did",
        ),
        ({"dtype": "float16"}, "dtype 'float16': there is auto, float32, bfloat16"),
        ({"slots": 0}, "slots 0"),
        ({"context": 8193}, "context 8,193: give 2 to 8,192 tokens"),
        ({"context": 1}, "context 1: give 2"),
        ({"engine": "torch", "quantize": "q8_0"}, "quantize q8_0 is llama.cpp's"),
        ({"engine": "llama.cpp", "device": "cuda"}, "device cuda is torch's"),
        ({"quantize": "q8_0", "device": "cuda"}, "device cuda is torch's"),
        ({"engine": "llama.cpp", "dtype": "bfloat16"}, "dtype bfloat16 is torch's"),
        ({"quantize": "q8_1"}, "q8_1"),
        ({"template": "chatmk"}, "there is no chat template 'chatmk'"),
    ],
)
def test_what_cannot_be_is_refused(model: Path, asked: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as refused, opened(model, **asked):
        pass
    assert said in str(refused.value)


def test_llama_cpp_without_xllamacpp_names_the_extra(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    for asked in ({"engine": "llama.cpp"}, {"quantize": "q8_0"}):
        with (
            pytest.raises(UserError, match=r"pip install 'llamita\[cpu\]'"),
            opened(model, **asked),
        ):
            pass


def test_the_ends_are_the_configs_the_templates_and_the_tokenizers(tokenizer: Tokenizer) -> None:
    config = ModelConfig(
        vocab_size=400, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=[7, 9],
    )  # fmt: skip
    found = end_ids(config, tokenizer, chat_template(tokenizer, "chatml"))
    assert found == {7, 9, tokenizer.id_of("<|im_end|>"), tokenizer.eos_id}


def test_the_named_template_is_the_engines(model: Path) -> None:
    with opened(model, template="zephyr", context=256) as engine:
        assert engine.template.name == "zephyr"


def test_llama_cpp_needs_no_torch(model: Path) -> None:
    """Once its GGUF is made; torch takes seconds to import."""
    with opened(model, context=256):
        pass
    code = (
        "import sys; from llamita.inference import engines; engines._may_have_gpu = lambda: False\n"
        f"engine = engines.open_engine({str(model)!r}, context=256, say=print)\n"
        "print(engine.name, 'torch' in sys.modules); engine.close()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "llama.cpp False\n", ended.stderr
