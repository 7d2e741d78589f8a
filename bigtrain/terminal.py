"""What the commands with a PATH share at the terminal: the form of their command line, a progress bar, and quiet."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bigtrain.errors import UserError, nearest

if TYPE_CHECKING:
    from rich.progress import Progress


def quiet_libraries() -> None:
    """What torchao and bitsandbytes say while they are imported, by us, transformers or peft, is not the user's: of
    kernels for other processors, and of what torch will deprecate. To be called before any of them is."""
    for talker in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(talker).setLevel(logging.ERROR)


class CommandLine(argparse.ArgumentParser):
    """One command's options, in argparse's way; `--help` prints them and exits 0, everything wrong is a `UserError`.

    Args:
        command: the word behind `bigtrain`.
        summary: what it does, with an example or two below it.
        device: whether it takes `--device`.
    """

    def __init__(self, command: str, summary: str, *, device: bool = True) -> None:
        super().__init__(
            prog=f"bigtrain {command}",
            usage=f"bigtrain {command} PATH [options] [overrides]",
            description=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "words",
            nargs="*",
            metavar="PATH",
            help="a run folder, a checkpoint in it, or a Hugging Face folder (such as an export)",
        )
        if device:
            self.add_argument(
                "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one"
            )

    def error(self, message: str) -> NoReturn:
        """Say it without a usage in front."""
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def options(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options, and `words`, all else.

        Raises:
            UserError: an unknown option, a value of the wrong type.
        """
        options, unknown = self.parse_known_intermixed_args(list(argv))
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            word = unknown[0].partition("=")[0]
            raise UserError(f"{self.prog} has no option {word}.{nearest(word, known)}")
        return options

    def read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, str, list[str]]:
        """The options, PATH, and the overrides (`a.b=value`).

        Raises:
            UserError: as `options`, no PATH or two.
        """
        options = self.options(argv)
        words: list[str] = options.words
        overrides = [word for word in words if "=" in word and not Path(word).exists()]
        paths = [word for word in words if word not in overrides]
        if len(paths) != 1:
            given = f", not {' and '.join(paths)}" if paths else ""
            raise UserError(f"{self.prog} needs one PATH{given}: a run folder, a checkpoint or a Hugging Face folder.")
        return options, paths[0], overrides


def progress_bar() -> Progress:
    """On standard error and gone when done, so that standard output holds the result alone; nothing in a log file."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
