"""What people see while a run goes: one steady line."""

from __future__ import annotations

from dataclasses import dataclass

from llamita.planning.quantities import duration, gigabytes


@dataclass(frozen=True)
class Progress:
    """The state of a run at a step, for one line of console and one event."""

    step: int
    last_step: int
    stage: str
    loss: float
    bits_per_byte: float | None
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    mfu: float
    memory: int
    data_wait: float
    eta: float
    checkpoint: str | None

    def line(self) -> str:
        width = len(str(self.last_step))
        validation = "" if self.bits_per_byte is None else f"val {self.bits_per_byte:.4f} b/B | "
        return (
            f"step {self.step:>{width}}/{self.last_step} {self.stage} | loss {self.loss:.4f} | "
            f"{validation}lr {self.learning_rate:.2e} | norm {self.grad_norm:.2f} | "
            f"{self.tokens_per_second / 1000:.1f}k tok/s | MFU {self.mfu:.0%} | "
            f"{gigabytes(self.memory)} | wait {self.data_wait:.1%} | ETA {duration(self.eta)} | "
            f"saved {self.checkpoint or 'nothing yet'}"
        )
