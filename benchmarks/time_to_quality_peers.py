"""The peers of time_to_quality.py: the Transformers Trainer and litgpt's own pretraining loop.

They read the same windows of the same shards and train the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llamita.architecture.config import ModelConfig
from llamita.architecture.presets import preset
from llamita.data.shards import open_dataset
from llamita.data.tokenizer import load_tokenizer
from time_to_quality_turns import (
    LAST_LOSSES,
    MIXTURE,
    SHAPE,
    WARM_UP_PASSES,
    WARMUP,
    Job,
    Outcome,
    Turn,
)

PEERS: dict[str, dict[str, Any]] = {
    # The Trainer's own default schedule, linear to 0; litgpt's own, a cosine, to 0 as well.
    "transformers": {"schedule": "linear", "betas": (0.9, 0.95), "weight_decay": 0.1, "clip": 1.0},
    "litgpt": {"schedule": "cosine", "betas": (0.9, 0.95), "weight_decay": 0.1, "clip": 1.0},
}


class Windows:
    """Windows of T + 1 tokens of the same shards, 7:3, as a map-style dataset; the peer shuffles.

    One epoch holds every window of prose and three sevenths as many of code, drawn once.
    """

    def __init__(self, job: Job) -> None:
        self.length = job.sequence_length
        self.streams = {name: open_dataset(job.data / name).train for name in MIXTURE}
        sizes = {name: stream.num_windows(self.length) for name, stream in self.streams.items()}
        total = sizes["prose"] / MIXTURE["prose"]
        draw = np.random.default_rng(job.seed)
        self.items: list[tuple[str, int]] = []
        for name, share in MIXTURE.items():
            wanted, size = round(share * total), sizes[name]
            rounds = [draw.permutation(size) for _ in range(-(-wanted // size))]
            self.items += [(name, int(index)) for index in np.concatenate(rounds)[:wanted]]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        name, window = self.items[index]
        tokens = self.streams[name].window(window, self.length)
        return torch.from_numpy(tokens.astype(np.int64))


def shape(job: Job) -> ModelConfig:
    vocab_size = load_tokenizer(job.data / "prose" / "tokenizer").vocab_size
    return preset(SHAPE).config.replace(vocab_size=vocab_size)


def run_transformers(job: Job, turn: Turn) -> Outcome:
    """The Trainer with torch_compile, bf16 autocast, fused AdamW, its own linear schedule.

    Kinder than usual: it reads memory-mapped shards, and `shift_labels` lets all T positions of a
    window learn, where the usual labels leave out the last.
    """
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments, optimization

    settings = PEERS["transformers"]
    transformers.set_seed(job.seed)
    config = transformers.LlamaConfig(**shape(job).to_huggingface(), attn_implementation="sdpa")
    config.use_cache = False
    model = transformers.LlamaForCausalLM(config)
    name = f"_get_{settings['schedule']}_schedule_with_warmup_lr_lambda"
    phases = {
        "num_warmup_steps": round(WARMUP * job.milliseconds),
        "num_training_steps": job.milliseconds,
    }
    if settings["schedule"] == "cosine":
        phases["num_cycles"] = 0.5
    schedule = getattr(optimization, name)
    losses: list[Tensor] = []

    class Timed(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda _: schedule(turn.milliseconds, **phases)
            )
            return self.lr_scheduler

        def training_step(self, *given: Any, **named: Any) -> Tensor:
            losses.append(super().training_step(*given, **named))
            return losses[-1]

    class Turns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rows = collate([windows[index] for index in range(job.rows)])
            [rows], count = trainer.get_batch_samples(iter([rows]), 1, args.device)
            trainer.current_gradient_accumulation_steps = 1
            for _ in range(WARM_UP_PASSES):
                trainer.training_step(trainer.model_wrapped, rows, count)
            trainer.model_wrapped.zero_grad()
            turn.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = turn.step()

    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        tokens = torch.stack(rows)
        targets = tokens[:, 1:].contiguous()
        return {
            "input_ids": tokens[:, :-1].contiguous(),
            "labels": targets,
            "shift_labels": targets,
        }

    windows = Windows(job)
    trainer = Timed(
        model=model,
        train_dataset=windows,
        data_collator=collate,
        callbacks=[Turns()],
        args=TrainingArguments(
            output_dir=str(job.directory / "trainer"),
            per_device_train_batch_size=job.rows,
            max_steps=1_000_000,
            learning_rate=job.learning_rate,
            adam_beta1=settings["betas"][0],
            adam_beta2=settings["betas"][1],
            weight_decay=settings["weight_decay"],
            max_grad_norm=settings["clip"],
            optim="adamw_torch_fused",
            bf16=True,
            use_cpu=True,
            torch_compile=True,
            seed=job.seed,
            dataloader_drop_last=True,
            remove_unused_columns=False,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    trainer.train()
    turn.finish()
    out = job.directory / "final"
    trainer.model.save_pretrained(out)
    learnt = losses[WARM_UP_PASSES:][-LAST_LOSSES:]
    return out, [float(loss) for loss in learnt], trainer.lr_scheduler.get_last_lr()[0]


def run_litgpt(job: Job, turn: Turn) -> Outcome:
    """litgpt's own `pretrain.main`: Fabric, bf16-mixed, torch.compile, cosine to 0.

    Kinder than usual: AdamW is fused, which litgpt asks for on CUDA only. Its weights leave by its
    own converter.
    """
    import lightning
    from litgpt import pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule

    settings, windows = PEERS["litgpt"], Windows(job)
    losses, rates = [], []

    class Data(DataModule):
        def connect(self, **kwargs: Any) -> None:
            pass

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(windows, job.rows, shuffle=True, drop_last=True)

        def val_dataloader(self) -> Any:  # looked at before the first step only
            return torch.utils.data.DataLoader(windows, job.rows)

    class TimeIsOver(Exception):
        pass

    fit, get_lr, instantiate = pretrain.fit, pretrain.get_lr, pretrain.instantiate_torch_optimizer
    trained: dict[str, nn.Module] = {}

    def timed_rate(rate: float, it: int, warmup: int, last: int, lowest: float) -> float:
        """Called where each iteration begins; one iteration is one step here."""
        if it == 0:
            turn.begin()
        elif turn.step():
            raise TimeIsOver
        now = min(turn.milliseconds, job.milliseconds)
        rates.append(get_lr(rate, now, round(WARMUP * job.milliseconds), job.milliseconds, 0.0))
        return rates[-1]

    def timed_fit(**given: Any) -> None:
        model = given["state"]["model"]
        trained["model"] = model
        rows = torch.stack([windows[index] for index in range(job.rows)])
        for _ in range(WARM_UP_PASSES):
            logits = model(rows[:, :-1].contiguous())
            loss = pretrain.chunked_cross_entropy(logits, rows[:, 1:].contiguous())
            given["fabric"].backward(loss)
        model.zero_grad()
        try:
            fit(**given)
        except TimeIsOver:
            turn.finish()

    pretrain.get_lr, pretrain.fit = timed_rate, timed_fit
    pretrain.instantiate_torch_optimizer = lambda o, p, **_: instantiate(o, p, fused=True)
    pretrain.save_hyperparameters = lambda *_: None  # it would read this command's line
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    fabric.log_dict = lambda metrics, step=None: losses.append(metrics["loss"])
    fabric.launch()
    config = litgpt_config(shape(job), job.sequence_length)
    pretrain.main(
        fabric=fabric,
        devices=1,
        num_nodes=1,
        seed=job.seed,
        initial_checkpoint_dir=None,
        resume=False,
        config=config,
        data=Data(),
        out_dir=job.directory / "litgpt",
        tokenizer_dir=None,
        tokenizer=None,
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=job.rows,
            micro_batch_size=job.rows,
            max_tokens=1_000_000 * job.batch_tokens,
            max_norm=settings["clip"],
            max_seq_length=job.sequence_length,
            lr_warmup_steps=1,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "lr": job.learning_rate,
                "weight_decay": settings["weight_decay"],
                "betas": settings["betas"],
            },
        },
    )
    out = _export_litgpt(job, trained["model"])
    return out, losses[-LAST_LOSSES:], rates[-1]


def litgpt_config(config: ModelConfig, sequence_length: int) -> Any:
    from litgpt import Config

    return Config(
        name="llama",
        block_size=sequence_length,
        padded_vocab_size=config.vocab_size,
        vocab_size=config.vocab_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_query_groups=config.num_key_value_heads,
        n_embd=config.hidden_size,
        head_size=config.head_dim,
        intermediate_size=config.intermediate_size,
        rotary_percentage=1.0,
        rope_base=int(config.rope_theta),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        norm_eps=config.rms_norm_eps,
    )


def _export_litgpt(job: Job, model: nn.Module) -> Path:
    """A Hugging Face directory of the weights that litgpt saved; logits are compared."""
    from litgpt.model import GPT
    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint

    from llamita.model.huggingface import load_model, save_model

    saved, out = (job.directory / "litgpt" / "final").resolve(), job.directory / "final"
    convert_lit_checkpoint(saved, saved)
    state: Mapping[str, Tensor] = torch.load(saved / "model.pth", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    save_model(out, kept, shape(job))
    plain = GPT(litgpt_config(shape(job), job.sequence_length))
    weights = {n.replace("_orig_mod.", ""): p for n, p in model.state_dict().items()}
    plain.load_state_dict(weights)
    tokens = torch.arange(64)[None] * 37 % plain.config.vocab_size
    with torch.no_grad():
        theirs, ours = plain(tokens), load_model(out)(tokens)
    if not torch.allclose(theirs, ours, atol=1e-3):
        raise RuntimeError(f"litgpt's logits changed by {float((theirs - ours).abs().max()):.2g}")
    return out
