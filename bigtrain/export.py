"""`bigtrain export PATH --out DIR`: a Hugging Face folder that has proved, read back, to be the same function."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bigtrain import __version__
from bigtrain.checkpoint.folder import flush, reason
from bigtrain.config.schema import RunConfig
from bigtrain.errors import EXIT_DONE, RunError, UserError
from bigtrain.telemetry.progress import say
from bigtrain.terminal import CommandLine
from bigtrain.trained import MARKER, Device, Trained, load_trained, quiet_transformers, read_marker

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SUMMARY = """\
A Hugging Face folder (config.json, model.safetensors, tokenizer) of a trained model. It is loaded back by transformers,
and refused unless its logits on a probe batch are those of the model.

  bigtrain export runs/quickstart/20250101-120000 --out my-model
  bigtrain export RUN/checkpoints/step_00000200 --out my-model-bf16 --dtype bf16
  bigtrain train recipe=R model.path=my-model          (the same folder as pretrained weights)

Overrides are laid over the run's own configuration; model._target_=my.Model says that a model of yours may be used."""

Dtype = Literal["fp32", "bf16", "fp16"]
BOUND = 1e-5
"""Largest difference of a logit in fp32 arithmetic, for logits up to 10; in proportion where they are larger (those of
GPT-2 are near 100, where fp32 itself rounds to 8e-6)."""
MERGED = 1e-4
"""The same for adapters that are added into their weights."""


def export(
    path: str | Path,
    out: str | Path,
    *,
    dtype: Dtype = "fp32",
    force: bool = False,
    config: RunConfig | None = None,
    overrides: Sequence[str] = (),
    device: Device = "auto",
) -> Path:
    """Write the model at `path` into the folder `out`, which appears whole and proved or not at all.

    The proof: the weights as they were written (for half precisions: rounded) give, in fp32, the same logits in the
    model that they came from and in the one that transformers' Auto class of its task makes of them, to `BOUND`.
    What rounding itself does to the logits is no fault, and is said.

    Args:
        path: see `load_trained`, also for `config`, `overrides` and `device`.
        out: a new or empty folder, or an earlier export, which is then replaced.
        dtype: of the weights in the folder.
        force: also replace a Hugging Face folder that bigtrain did not write or that more was put into.

    Raises:
        UserError: `out` is something else, or cannot be written; the model has no Hugging Face form; its weights do
            not fit fp16.
        RunError: the logits differ, or transformers cannot read the folder. Nothing of it is left.
    """
    out = Path(out).expanduser()
    check_place(out, Path(path), force)
    trained = load_trained(path, config=config, overrides=overrides, device=device)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {reason(error)}.") from error
    try:
        fresh = scratch / "export"
        write(trained, fresh, dtype)
        _publish(fresh, out, scratch / "replaced")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {reason(error)}. Nothing of it is left.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def check_place(out: Path, source: Path, force: bool) -> None:
    """A `UserError` where writing `out` would lose something that is not an earlier export."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: give a folder.")
    there = {child.name for child in out.iterdir()}
    if not there:
        return
    if out.resolve() == source.expanduser().resolve():
        raise UserError(f"{out} is what should be exported: give another folder.")
    if "config.json" not in there:
        raise UserError(f"{out} is not empty and no export: give another folder.")
    told = read_marker(out)
    more = sorted(there - set(told.get("files", [])) - {MARKER}) if told else []
    if told is None and not force:
        raise UserError(
            f"{out} is a model that bigtrain did not write: give another folder, or replace it with --force."
        )
    if more and not force:
        raise UserError(
            f"{out} holds {more[0]}, which no export wrote: give another folder, or replace it with --force."
        )


def write(trained: Trained, folder: Path, dtype: Dtype) -> None:
    """Write the new folder `folder`, read it back and compare. The model's weights are rounded to `dtype`."""
    import torch

    from bigtrain.models.adapters import merged
    from bigtrain.models.hf import save_hugging_face
    from bigtrain.models.native import Decoder

    model = trained.model
    if not (hasattr(model, "hf") or isinstance(model, Decoder)):
        raise UserError(f"{type(model).__name__} has no Hugging Face form: its run folder is what there is of it.")
    batch = probe(trained)
    exact = logits(model, batch)
    if hasattr(model, "hf"):
        model.hf = merged(model.hf)
        moved = float((logits(model, batch) - exact).abs().max())
        if not moved <= MERGED * max(1.0, float(exact.abs().max()) / 10):
            raise RunError(f"Merging the adapters moved the logits by {moved:.2e}, more than {MERGED:.0e}: refused.")
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    _round(model, kinds[dtype])
    save_hugging_face(model, folder, trained.tokenizer_path)
    _round(model, torch.float32)
    here = logits(model, batch)
    there = logits(_read_back(folder, trained.device, getattr(model, "task", "causal_lm")), batch)
    if there.shape != here.shape:
        raise RunError(f"The export has logits {list(there.shape)}, the model {list(here.shape)}: it is refused.")
    difference, largest = float((there - here).abs().max()), float(here.abs().max())
    bound = BOUND * max(1.0, largest / 10)
    if not difference <= bound:  # NaN is no proof either
        raise RunError(
            f"The export's logits differ by {difference:.2e} from the model's, more than {bound:.0e}: it is refused."
        )
    rounding = float((here - exact).abs().max())
    say(
        f"The export's logits differ from the model's by {difference:.1e} at most (bound {bound:.0e})"
        + (f"; rounding to {dtype} moved them by {rounding:.1e} at most" if dtype != "fp32" else "")
    )
    step, tokens = trained.progress
    told = {
        "bigtrain": __version__,
        "step": step,
        "tokens": tokens,
        "dtype": dtype,
        "largest_logit_difference": difference,
        "files": sorted(child.name for child in folder.iterdir()),
    }
    (folder / MARKER).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def probe(trained: Trained) -> dict[str, Tensor]:
    """Random inputs, the same each time: tokens (2, S), S = 64 or the model's window where that is shorter; of a model
    that makes one sequence from another the labels (2, S) too; or images (2, C, H, W)."""
    import torch

    generator, task = torch.Generator().manual_seed(0), getattr(trained.model, "task", "causal_lm")
    if task == "image_classification":
        theirs: Any = trained.model.config
        shape = (2, theirs.num_channels, theirs.image_size, theirs.image_size)
        return {"images": torch.randn(shape, generator=generator).to(trained.device)}
    length = min(64, trained.window or 64)
    names = ("input_ids", "labels") if task == "seq2seq" else ("input_ids",)
    return {
        name: torch.randint(trained.vocab_size or 1, (2, length), generator=generator).to(trained.device)
        for name in names
    }


def logits(model: Callable[..., Tensor], batch: dict[str, Tensor]) -> Tensor:
    """(B, S, V), or (B, C) of a classifier, in fp32."""
    import torch

    with torch.no_grad():
        return model(**batch).float()


def _round(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters only: tables of positions and the like are never stored, and stay as they are."""
    import torch

    for name, parameter in model.named_parameters():
        rounded = parameter.detach().to(dtype)
        if dtype is torch.float16 and not torch.isfinite(rounded).all():
            raise UserError(f"The values of {name} do not fit fp16 (they go up to 65504): take --dtype bf16.")
        parameter.data = rounded


def _read_back(folder: Path, device: torch.device, task: str) -> nn.Module:
    """The folder's model in fp32 as transformers reads it."""
    import torch

    from bigtrain.models.tasks import HuggingFaceSeq2Seq, HuggingFaceTask, auto_class

    quiet_transformers()
    try:
        loaded = auto_class(task).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever it is, the folder is no good
        raise RunError(f"transformers cannot read the export, so it is refused: {error}") from error
    kind = HuggingFaceSeq2Seq if task == "seq2seq" else HuggingFaceTask
    return kind(loaded, task).to(device).eval()


def _publish(fresh: Path, out: Path, aside: Path) -> None:
    """Flush, then one rename; what is replaced steps aside first and comes back where that fails."""
    for file in fresh.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    replaced = out.exists()
    if replaced:
        out.rename(aside)
    try:
        fresh.rename(out)
    except OSError:
        if replaced:
            aside.rename(out)
        raise
    flush(out.parent)


def main(argv: Sequence[str]) -> int:
    """The command."""
    line = CommandLine("export", SUMMARY)
    line.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    line.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the weights; default fp32")
    line.add_argument("--force", action="store_true", help="replace a model folder that bigtrain did not write")
    options, path, overrides = line.read(argv)
    print(
        export(
            path,
            options.out,
            dtype=options.dtype,
            force=options.force,
            overrides=overrides,
            device=options.device,
        )
    )
    return EXIT_DONE
