"""What a stage learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from llamita.recipes.settings import Settings


class LanguageModelling(Settings):
    """Predict every next token; of conversations, those that the data mark as learning."""

    kind: Literal["language_modelling"] = "language_modelling"
    document_masking: bool = False
    """Attention stays inside a document. Neutral at 2k, of value at 4k and above."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of log(Z)², which keeps the logits from drifting (PaLM uses 1e-4)."""


class Preference(Settings):
    """Of two answers to one prompt, prefer the chosen one: direct preference optimisation and its
    kin. Every dataset of the stage holds pairs."""

    kind: Literal["preference"] = "preference"
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: DPO (arXiv 2305.18290, equation 7). `ipo`: a squared distance from 1 / (2 beta)
    (arXiv 2310.12036, equation 17), of log-probabilities averaged over an answer's tokens."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How dearly straying from the reference model is bought: larger strays less."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs taken to be labelled the wrong way round (cDPO); with `sigmoid` only."""
    reference: Literal["auto", "precomputed", "live"] = "auto"
    """Log-probabilities of the model that the stage begins with: computed once before it and kept
    in the run, or `live`, by the base with its adapter off, in every step. auto: precomputed."""

    @model_validator(mode="after")
    def _smooths_what_it_can(self) -> Preference:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError("label_smoothing has an effect with loss: sigmoid only")
        return self


def _language_modelling_by_default(value: object) -> object:
    return {"kind": "language_modelling", **value} if isinstance(value, dict) else value


Objective = Annotated[
    LanguageModelling | Preference,
    Field(discriminator="kind"),
    BeforeValidator(_language_modelling_by_default),
]
