"""The tokenizer: trained or taken, kept as a folder that `transformers.AutoTokenizer` reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigtrain.errors import UserError, nearest_path

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""What tokenizers mostly lie in."""
END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
SENTINEL = "<extra_id_{}>"
"""Of tokenizers that are trained for masked tokens and masked spans."""
SENTINELS = 100
TRAINING_CHARACTERS = 1 << 30
"""A tokenizer is trained on this much of the training documents at most: merges settle long before."""


def train(texts: Iterator[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, with GPT-2's pre-tokeniser (Radford et al., 2019).

    Beside the end of text it has the `special_tokens`, from id 1 on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(texts, TRAINING_CHARACTERS), trainer)
    return tokenizer


def save(tokenizer: Any, folder: Path) -> None:
    """Writes a `tokenizers.Tokenizer` whose documents end with END_OF_TEXT as a Hugging Face folder."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT)
    if tokenizer.token_to_id(MASK) is not None:
        special["mask_token"] = MASK
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def take(given: str, folder: Path) -> None:
    """Writes the tokenizer `given` (a folder, or a hub name) into `folder`.

    Raises:
        UserError: it is not there, is none, has no fast form, or no end-of-text token.
    """
    here = Path(given).expanduser()
    names = {file.name for file in here.iterdir()} if here.is_dir() else set()
    if {"vocab.json", "merges.txt"} <= names and not names & {"tokenizer.json", "tokenizer_config.json"}:
        save(_gpt2(here), folder)
        return
    packed = [here] if here.is_file() and here.suffix == ".gguf" else []
    if here.is_dir() and not names & {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}:
        packed = sorted(here.glob("*.gguf"))
    if here.exists() and not here.is_dir() and not packed:
        raise UserError(f"data.tokenizer={given} is a file: give the folder that it lies in.")
    tokenizer = _of_gguf(packed[0]) if len(packed) == 1 else _hugging_face(given, local=here.is_dir())
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"data.tokenizer={given} has no fast form (tokenizer.json), which bigtrain needs.")
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:  # BERT's
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise UserError(f"data.tokenizer={given} names no end-of-text token (eos_token in tokenizer_config.json).")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the Rust side says a full disk in words only
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), str(error), str(folder)) from error


def _gpt2(folder: Path) -> Any:
    """GPT-2's own two files. The ids are those of `transformers.GPT2TokenizerFast`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"data.tokenizer={folder}: vocab.json or merges.txt is damaged: {error}") from error
    tokenizer = Tokenizer(model)
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise UserError(
            f"data.tokenizer={folder}: vocab.json has no {END_OF_TEXT}; a tokenizer other than GPT-2's needs its "
            f"tokenizer.json or tokenizer_config.json too."
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def load(folder: Path) -> Any:
    """The saved tokenizer, as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def _of_gguf(file: Path) -> Any:
    """The tokenizer inside a GGUF file, with its chat template."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except ImportError as error:
        raise UserError(f"data.tokenizer={file} needs the gguf package: pip install 'bigtrain[gguf]'.") from error
    except Exception as error:  # of any kind: it is the user's file
        raise UserError(f"data.tokenizer={file}: transformers cannot read it: {error}") from error


def _hugging_face(given: str, local: bool) -> Any:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from transformers import AutoTokenizer

    from bigtrain.data import hub

    here = Path(given).expanduser()
    try:
        cached = not local and try_to_load_from_cache(given, "tokenizer_config.json")
    except HFValidationError as error:  # no name that a hub could know
        raise UserError(f"data.tokenizer={given}: there is no such folder or file.{nearest_path(here)}") from error
    # of a config.json alone, as a look at a model leaves it in the cache, transformers makes an empty tokenizer
    if local or isinstance(cached, str):
        try:
            return AutoTokenizer.from_pretrained(given, local_files_only=True)
        except Exception as error:  # OSError, ValueError, KeyError, … by what is missing
            if local and not any((here / name).is_file() for name in FILES):
                raise UserError(
                    f"data.tokenizer={given} holds no tokenizer: it has none of {', '.join(FILES)}."
                ) from error
            if local:
                raise UserError(f"data.tokenizer={given} is no folder of a Hugging Face tokenizer: {error}") from error
    revision = hub.find(given, "model", "data.tokenizer")
    try:
        return AutoTokenizer.from_pretrained(given, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"data.tokenizer={given}: {error}") from error


class Encoder:
    """A saved tokenizer at work: documents in, ids out."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.eos_id = self._id(config["eos_token"])
        self.pad_id = self._id(config["pad_token"])
        self.vocab_size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def _id(self, token: str | dict[str, Any]) -> int:
        found = self.tokenizer.token_to_id(token if isinstance(token, str) else token["content"])
        assert found is not None, f"{token} is not in the saved tokenizer"
        return int(found)

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """(ids of all documents end to end, each closed by the end of text; the length of each with it).

        A document that gives no id at all is left out. The spelling of a special token in a document becomes that
        token, as everywhere with Hugging Face tokenizers.
        """
        encoded = [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        kept = [[*ids, self.eos_id] for ids in encoded if ids]
        lengths = np.fromiter(map(len, kept), np.int64, len(kept))
        return np.fromiter(chain.from_iterable(kept), np.uint32, int(lengths.sum())), lengths


def file_hash(folder: Path) -> str:
    """sha256 of a saved tokenizer."""
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def equal(one: Path, other: Path) -> bool:
    """Whether two saved tokenizers give a text the same ids. What only frames or cuts the ids is not compared."""

    def core(folder: Path) -> dict[str, Any]:
        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return {key: whole[key] for key in whole.keys() - {"post_processor", "truncation", "padding"}}

    return core(one) == core(other)


def _first(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return
