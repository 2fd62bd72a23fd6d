"""llamita: the whole life of a small language model in one tool.

Every verb of the command line is a function here, loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamita.data.build import build_data as build_data
    from llamita.data.chat_build import build_chats as build_chats
    from llamita.data.show import show_data as show_data
    from llamita.data.tokenizer import load_tokenizer as load_tokenizer
    from llamita.data.tokenizer_training import train_tokenizer as train_tokenizer
    from llamita.errors import UserError as UserError
    from llamita.evaluation.verb import evaluate as evaluate
    from llamita.formats.exporting import export_model as export_model
    from llamita.formats.importing import import_model as import_model
    from llamita.inference.loading import load as load
    from llamita.inference.writing import generate as generate
    from llamita.model.huggingface import load_model as load_model
    from llamita.planning.hardware import show_hardware as show_hardware
    from llamita.planning.law_verbs import fit_law as fit_law
    from llamita.planning.law_verbs import show_laws as show_laws
    from llamita.planning.verb import plan as plan
    from llamita.reporting.information import info as info
    from llamita.reporting.report import report as report
    from llamita.serving.verb import serve as serve
    from llamita.starter.quickstart import quickstart as quickstart
    from llamita.terminal.chatting import chat as chat
    from llamita.training.run import train as train
    from llamita.tuning.verbs import align as align
    from llamita.tuning.verbs import tune as tune
    from llamita.windtunnel.recipe import tunnel_recipe as tunnel_recipe
    from llamita.windtunnel.verb import tunnel_run as tunnel_run
    from llamita.windtunnel.verb import tunnel_show as tunnel_show

__version__ = "0.1.0"

_WHERE = {
    "UserError": "llamita.errors",
    "align": "llamita.tuning.verbs",
    "build_chats": "llamita.data.chat_build",
    "build_data": "llamita.data.build",
    "chat": "llamita.terminal.chatting",
    "evaluate": "llamita.evaluation.verb",
    "export_model": "llamita.formats.exporting",
    "fit_law": "llamita.planning.law_verbs",
    "generate": "llamita.inference.writing",
    "import_model": "llamita.formats.importing",
    "info": "llamita.reporting.information",
    "load": "llamita.inference.loading",
    "load_model": "llamita.model.huggingface",
    "load_tokenizer": "llamita.data.tokenizer",
    "plan": "llamita.planning.verb",
    "quickstart": "llamita.starter.quickstart",
    "report": "llamita.reporting.report",
    "serve": "llamita.serving.verb",
    "show_data": "llamita.data.show",
    "show_hardware": "llamita.planning.hardware",
    "show_laws": "llamita.planning.law_verbs",
    "train": "llamita.training.run",
    "train_tokenizer": "llamita.data.tokenizer_training",
    "tune": "llamita.tuning.verbs",
    "tunnel_recipe": "llamita.windtunnel.recipe",
    "tunnel_run": "llamita.windtunnel.verb",
    "tunnel_show": "llamita.windtunnel.verb",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'llamita' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
