"""The tokenizer's folder is one that Hugging Face reads, and the shards hold its ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data import tokenizer as tokenizers_
from bigtrain.data.text_data import TextData
from bigtrain.data.tokenizer import END_OF_TEXT, Encoder, take, train
from bigtrain.errors import UserError

from .conftest import Make, gpt2_files

NASTY = [
    "naïve café — 日本語テスト 🐳👩‍👩‍👧 \u200b\ufeff\u202e",
    "\r\n\t \x00\x07 a\u0301\u0327 ﬁ Å Å",
    "   spaces   and\n\n\nlines  ",
    "don't we'll 12345 3.14 <|endoftext|> inside",
    "x" * 5000,
]


def test_transformers_reads_it_and_agrees_on_every_id(prepared: TextData, chapters: list[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(prepared.tokenizer_path))
    encoder = Encoder(prepared.tokenizer_path)
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.eos_token_id == encoder.eos_id and len(tokenizer) == encoder.vocab_size == prepared.vocab_size
    for text in [*NASTY, *chapters[:5]]:
        ids, lengths = encoder([text])
        assert ids.tolist() == [*tokenizer(text, add_special_tokens=False)["input_ids"], encoder.eos_id]
        assert lengths.tolist() == [len(ids)]
        assert tokenizer.decode(ids[:-1]) == text


def test_an_export_of_any_model_can_carry_it(prepared: TextData, tmp_path: Path) -> None:
    """Beside a config.json of another architecture, transformers must still take this tokenizer."""
    from transformers import AutoTokenizer

    for kind in ("gpt2", "llama"):
        folder = tmp_path / kind
        folder.mkdir()
        for file in prepared.tokenizer_path.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        for text in NASTY:
            ids = Encoder(prepared.tokenizer_path)([text])[0].tolist()[:-1]
            assert tokenizer(text)["input_ids"] == ids and tokenizer.decode(ids) == text


@settings(deadline=None)
@given(texts=st.lists(st.text(), max_size=5))
def test_documents_of_any_characters_come_out_again(prepared: TextData, texts: list[str]) -> None:
    encoder = Encoder(prepared.tokenizer_path)
    ids, lengths = encoder(texts)
    assert len(ids) == lengths.sum() and len(lengths) == sum(bool(text) for text in texts)
    decoded, at = [], 0
    for length in lengths:
        assert ids[at + length - 1] == encoder.eos_id
        decoded.append(encoder.tokenizer.decode(ids[at : at + length - 1].tolist()))
        at += length
    assert decoded == [text for text in texts if text]


def test_training_is_deterministic_and_counts_the_training_documents_only(make: Make, chapters: list[str]) -> None:
    once, again = (train(iter(chapters), 700).to_str() for _ in range(2))
    assert once == again
    secret = "zqxjzqxjzqxj" * 400
    text = [*chapters, secret]
    import bigtrain.data.prepare as prepare

    held = next(seed for seed in range(99) if ("eval", secret) in list(prepare.divide(iter(text), 0.3, seed)))
    kept = next(seed for seed in range(99) if ("train", secret) in list(prepare.divide(iter(text), 0.3, seed)))
    folder = make().cache.parent / "texts"
    folder.mkdir()
    for number, chapter in enumerate(text):
        (folder / f"{number:02d}.txt").write_text(chapter)
    for seed, known in ((held, False), (kept, True)):
        data = make(path=str(folder), held_out=0.3, seed=seed)
        data.prepare()
        vocabulary = json.loads((data.tokenizer_path / "tokenizer.json").read_text())["model"]["vocab"]
        assert ("zqxjzqxj" in "".join(vocabulary)) == known


def test_training_stops_after_enough_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers_, "TRAINING_CHARACTERS", 1000)
    read = []

    def texts() -> Any:
        for number in range(100):
            read.append(number)
            yield "a whale " * 50

    train(texts(), 300)
    assert len(read) == 3


def test_an_error_while_reading_ends_the_training_as_itself() -> None:
    def texts() -> Any:
        yield "a"
        raise UserError("line 2 is broken")

    with pytest.raises(UserError, match="line 2 is broken"):
        train(texts(), 300)


def test_gpt2s_two_files_give_the_ids_of_transformers(prepared: TextData, make: Make, tmp_path: Path) -> None:
    from transformers import GPT2TokenizerFast

    folder = gpt2_files(prepared, tmp_path / "gpt2")
    reference = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    data = make(tokenizer=str(folder))
    data.prepare()
    encoder = Encoder(data.tokenizer_path)
    assert data.vocab_size == 512 and encoder.eos_id == reference.eos_token_id
    for text in NASTY:
        assert encoder([text])[0].tolist()[:-1] == reference(text)["input_ids"]
    assert data.fingerprint != prepared.fingerprint or data.train[0]["input_ids"].tolist()


def test_a_hugging_face_folder(prepared: TextData, make: Make, tmp_path: Path) -> None:
    """With tokens added after training, a template that adds more, and a length that would cut."""
    from transformers import AutoTokenizer

    given = AutoTokenizer.from_pretrained(str(prepared.tokenizer_path))
    given.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": ["<|user|>"]})
    given.model_max_length = 8
    given(["warm"], truncation=True, max_length=8, padding="max_length")  # leaves its settings in the backend
    given.save_pretrained(str(tmp_path / "given"))
    data = make(tokenizer=str(tmp_path / "given"))
    data.prepare()
    assert data.vocab_size == 514
    again = AutoTokenizer.from_pretrained(str(data.tokenizer_path))
    assert again.eos_token == "</s>" and again.convert_tokens_to_ids("<|user|>") == 513
    text = "<|user|> Where is the whale, the great white whale that took my leg? " * 3
    ids = Encoder(data.tokenizer_path)([text])[0].tolist()
    assert ids[-1] == 512 and 513 in ids and len(ids) > 30
    assert ids[:-1] == again(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no tokenizer: it has none of tokenizer.json"),
        ({"moby-dick.txt": "Call me Ishmael."}, "holds no tokenizer"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "{}"}, "no folder of a Hugging Face tokenizer"),
        ({"vocab.json": "{}", "merges.txt": "#version: 0.2\n"}, "no <\\|endoftext\\|>"),
        ({"vocab.json": "{", "merges.txt": ""}, "damaged"),
    ],
)
def test_folders_that_are_no_tokenizer(tmp_path: Path, files: dict[str, str], words: str) -> None:
    (tmp_path / "given").mkdir()
    for name, content in files.items():
        (tmp_path / "given" / name).write_text(content)
    with pytest.raises(UserError, match=words):
        take(str(tmp_path / "given"), tmp_path / "out")


def test_a_path_that_is_not_there_is_told_without_the_hub(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match=f"no such folder or file. Did you mean '{tmp_path}/tokenizer'"):
        take(f"{tmp_path}/tokeniser", tmp_path / "out")
    with pytest.raises(UserError, match="no such folder or file"):
        take("runs/nope/tokenizer", tmp_path / "out")


def test_a_file_or_a_tokenizer_without_an_end(prepared: TextData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the folder"):
        take(str(prepared.tokenizer_path / "tokenizer.json"), tmp_path / "out")
    folder = tmp_path / "endless"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((prepared.tokenizer_path / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="no end-of-text token"):
        take(str(folder), tmp_path / "out")
