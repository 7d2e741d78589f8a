"""Each peer trains the same model on the same batches in its own documented way; `python _sides.py SIDE …` is one run.

Sides: `bigtrain train` with its tracker, progress, metrics, clipping, schedule and checkpoints; the Hugging Face
Trainer; Accelerate's and Lightning Fabric's loops; LitGPT's `pretrain.fit` around its own model; and a compiled loop
by hand. Accelerate, Fabric and the loop by hand have transformers' model and torch's fused AdamW; the Trainer's default
is the fused one too. LitGPT takes the fused one on GPUs alone, and always compiles.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _meter import Meter
from _same import BETAS, CLIP, DECAY, EPS, LR, SIZES, Size, ordered


def optimizer(model: Any) -> Any:
    import torch

    return torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)


def hugging_face(folder: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def batches(size: Size) -> Iterator[dict[str, Any]]:
    """input_ids and shifted labels, both (B, S); transformers' own name of the latter is `shift_labels`."""
    for ids in ordered(size):
        yield {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}


def by_hand(size: Size, folder: Path, meter: Meter) -> None:
    """Forward and loss under torch.compile, backward, clip, step."""
    import torch
    from torch.nn.functional import cross_entropy

    model = hugging_face(folder).to(device())
    steps = optimizer(model)

    @torch.compile
    def loss_of(input_ids: Any, labels: Any) -> Any:
        return cross_entropy(model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1), labels.flatten())

    for batch in batches(size):
        loss = loss_of(batch["input_ids"].to(device()), batch["labels"].to(device()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        steps.step()
        steps.zero_grad()
        meter.step(loss.item())


def hf_trainer(size: Size, folder: Path, meter: Meter) -> None:
    """transformers' Trainer."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    samples = [{"input_ids": row[:-1], "labels": row[1:]} for row in ordered(size).flatten(0, 1)]

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            if "loss" in logs:
                meter.step(logs["loss"])

    class Shifted(Trainer):  # type: ignore[misc]
        """The labels are shifted already: their name differs, and the Trainer would count one a sample too few."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs["shift_labels"] = inputs["labels"]
            return super().compute_loss(model, inputs, num_items_in_batch=inputs["labels"].numel())

        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(samples)  # type: ignore[arg-type]

    model = hugging_face(folder)
    arguments = TrainingArguments(
        output_dir=str(meter.file.parent / "trainer"), per_device_train_batch_size=size.batch, max_steps=size.steps,
        lr_scheduler_type="constant", max_grad_norm=CLIP, logging_steps=1, save_strategy="steps", save_steps=size.steps,
        report_to=[], disable_tqdm=True, use_cpu=device() == "cpu", dataloader_pin_memory=device() == "cuda",
    )  # fmt: skip
    Shifted(
        model=model, args=arguments, train_dataset=samples, callbacks=[Told()], optimizers=(optimizer(model), None)
    ).train()


def accelerate(size: Size, folder: Path, meter: Meter) -> None:
    """Its documentation's loop."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device() == "cpu")
    model = hugging_face(folder)
    model, steps = accelerator.prepare(model, optimizer(model))
    for batch in batches(size):
        ids, labels = (batch[name].to(accelerator.device) for name in ("input_ids", "labels"))
        loss = model(input_ids=ids, labels=labels, shift_labels=labels, use_cache=False).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP)
        steps.step()
        steps.zero_grad()
        meter.step(loss.item())


def fabric(size: Size, folder: Path, meter: Meter) -> None:
    """Lightning Fabric's documentation's loop."""
    from lightning.fabric import Fabric

    lightning = Fabric(accelerator=device(), devices=1)
    model = hugging_face(folder)
    model, steps = lightning.setup(model, optimizer(model))
    for batch in batches(size):
        ids, labels = (batch[name].to(lightning.device) for name in ("input_ids", "labels"))
        loss = model(input_ids=ids, labels=labels, shift_labels=labels, use_cache=False).loss
        lightning.backward(loss)
        lightning.clip_gradients(model, steps, max_norm=CLIP, error_if_nonfinite=False)
        steps.step()
        steps.zero_grad()
        meter.step(loss.item())


def litgpt(size: Size, folder: Path, meter: Meter) -> None:
    """LitGPT's model, compiled, in its `pretrain.fit`, set up as its `pretrain.main` does."""
    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.loggers import Logger
    from litgpt import GPT, Config, pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import instantiate_torch_optimizer
    from torch.utils.data import DataLoader

    class Told(Logger):  # type: ignore[misc]
        name, version = "told", 0

        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            meter.step(metrics["loss"])

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            """Nothing."""

    lightning = Fabric(accelerator=device(), devices=1, loggers=Told())
    config = Config(
        block_size=size.length, n_layer=size.layers, n_embd=size.width, n_head=size.heads, bias=False,
        vocab_size=size.vocabulary, padded_vocab_size=size.vocabulary, rotary_percentage=1.0, parallel_residual=False,
        norm_class_name="RMSNorm", norm_eps=1e-5, mlp_class_name="LLaMAMLP", intermediate_size=size.mlp_width,
    )  # fmt: skip
    model, weights = GPT(config), {}
    copy_weights_hf_llama(config, {}, weights, dict(hugging_face(folder).state_dict()))
    model.load_state_dict(weights)
    model.transformer.wte.weight = model.lm_head.weight
    model = lightning.setup(torch.compile(model))
    adamw = {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY},
    }
    steps = instantiate_torch_optimizer(adamw, model.parameters(), fused=device() == "cuda")
    rows = list(ordered(size).flatten(0, 1))
    loader = lightning.setup_dataloaders(DataLoader(rows, batch_size=size.batch))  # type: ignore[arg-type]
    state = {"model": model, "optimizer": lightning.setup_optimizers(steps), "iter_num": 0, "step_count": 0}
    train = TrainArgs(
        save_interval=None, log_interval=1, global_batch_size=size.batch, micro_batch_size=size.batch, min_lr=LR,
        lr_warmup_steps=0, max_tokens=size.tokens * size.steps, max_norm=CLIP, tie_embeddings=True,
    )  # fmt: skip
    evaluation = EvalArgs(interval=10 * size.steps, max_iters=1, initial_validation=False, final_validation=False)
    pretrain.fit(lightning, 1, state, loader, loader, meter.file.parent, None, train, evaluation)


SIDES: dict[str, Callable[[Size, Path, Meter], None]] = {
    "by hand, compiled": by_hand,
    "HF Trainer": hf_trainer,
    "Accelerate": accelerate,
    "Lightning Fabric": fabric,
    "LitGPT": litgpt,
}
NEEDS = {"HF Trainer": "accelerate", "Accelerate": "accelerate", "Lightning Fabric": "lightning", "LitGPT": "litgpt"}
"""The package that a side stands on."""


def bigtrain(name: str, folder: Path, out: Path) -> list[str]:
    """The command line of bigtrain's side."""
    size = SIZES[name]
    return [
        "-m", "bigtrain", "train", "recipe=smoke", "engine=local", f"run.dir={out.parent / 'run'}", "seed=0",
        "model=toy", "model.preset=null", f"model.path={folder}",
        "data._target_=_same.data", f"data.size={name}", f"data.sequence_length={size.length}",
        "optimizer=adamw", f"optimizer.lr={LR}", f"optimizer.betas={list(BETAS)}", "optimizer.decay_all=true",
        f"optimizer.weight_decay={DECAY}", f"optimizer.eps={EPS}", "schedule=constant", "schedule.warmup_steps=0",
        f"trainer.global_batch_size={size.batch}", f"trainer.micro_batch_size={size.batch}",
        f"trainer.max_steps={size.steps}", "trainer.log_every=1", "trainer.eval_every=null",
        f"trainer.grad_clip={CLIP}", "checkpoint.every=null", "evaluation.report=false",
        "tracker.meter._target_=_meter.tracker", f"tracker.meter.file={out}", f"tracker.meter.tokens={size.tokens}",
    ]  # fmt: skip


def main() -> None:
    """SIDE SIZE FOLDER OUT.json."""
    side, name, folder, out = sys.argv[1:]
    meter = Meter(Path(out), SIZES[name].tokens)
    SIDES[side](SIZES[name], Path(folder), meter)
    meter.close()


if __name__ == "__main__":
    main()
