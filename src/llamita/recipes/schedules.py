"""How the learning rate of a stage goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llamita.recipes.settings import Count, CountOrZero, Settings


class Constant(Settings):
    """Linear warm-up, then the peak learning rate."""

    kind: Literal["constant"] = "constant"
    warmup_tokens: CountOrZero = 0


class Cosine(Settings):
    """Linear warm-up, then half a cosine from the peak to `final_fraction` of it."""

    kind: Literal["cosine"] = "cosine"
    warmup_tokens: CountOrZero = 0
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1


class _Decaying(Settings):
    form: Literal["linear", "cosine", "1-sqrt", "exponential"] = "exponential"
    final_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Where the decay ends, as a share of the peak. Default 0.1 (0 for linear and 1-sqrt)."""
    half_life_tokens: Count | None = None
    """Exponential form only: MiniCPM's 0.5^((s-S)/T), which ignores the decay's length."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> _Decaying:
        if self.half_life_tokens is not None and self.form != "exponential":
            raise ValueError(
                f"half_life_tokens belongs to form: exponential, not to form: {self.form}"
            )
        if self.half_life_tokens is not None and self.final_fraction is not None:
            raise ValueError("give half_life_tokens or final_fraction, not both")
        if self.form == "exponential" and self.final_fraction == 0:
            raise ValueError("an exponential decay never reaches 0: give final_fraction above 0")
        return self

    @property
    def end(self) -> float:
        """The final fraction with its default filled in."""
        if self.final_fraction is not None:
            return self.final_fraction
        return 0.0 if self.form in ("linear", "1-sqrt") else 0.1


class WSD(_Decaying):
    """Warm-up, stable, decay inside one stage; its last `decay_tokens` decay."""

    kind: Literal["wsd"] = "wsd"
    warmup_tokens: CountOrZero = 0
    decay_tokens: Count


class Decay(_Decaying):
    """The whole stage decays from the peak: what follows a constant stage, or branches from it."""

    kind: Literal["decay"] = "decay"


Schedule = Annotated[Constant | Cosine | WSD | Decay, Field(discriminator="kind")]
