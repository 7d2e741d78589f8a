"""Rows with labels, pairs, conversations and preferences: what is read, split, encoded and refused."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.assembly import keep_tokenizer
from bigtrain.data import Conversations, LabelledTexts, Pairs, Preferences, TaggedWords
from bigtrain.data.chats import CHATML, encode_talk, messages, pack
from bigtrain.data.loader import batches, eval_batches
from bigtrain.data.order import LengthGroups
from bigtrain.data.sets import IGNORE
from bigtrain.data.tables import split_rows
from bigtrain.data.tokenizer import load, save, train
from bigtrain.errors import UserError

WORDS = ["whale", "ship", "sea", "captain", "crew", "storm", "island", "voyage"]


def reviews(folder: Path, rows: int = 80) -> Path:
    file = folder / "reviews.tsv"
    if file.exists():
        return file
    lines = [f'{i}\t{(i % 9) - 4}\ta "{WORDS[i % 8]}" of number {i}\n' for i in range(rows)]
    file.write_text("".join(lines))
    return file


def labelled(folder: Path, **changes: Any) -> LabelledTexts:
    given: dict[str, Any] = {
        "path": str(reviews(folder)), "columns": ["id", "rating", "text"], "label_column": "rating",
        "label_ranges": {"bad": [None, -1], "good": [1, None]}, "vocab_size": 300, "cache": str(folder / "cache"),
    }  # fmt: skip
    data = LabelledTexts(**given | changes)
    data.prepare()
    return data


def test_ranges_make_labels_and_rows_outside_are_left_out(tmp_path: Path, capsys: Any) -> None:
    data = labelled(tmp_path, held_out=0.25)
    assert data.label_names == ["bad", "good"] and data.classes == 2 and data.tokens <= 300
    assert len(data.train) + len(data.eval) == sum((i % 9) - 4 != 0 for i in range(80))
    assert "rows have a rating in no range" in capsys.readouterr().err
    tokenizer = load(data.tokenizer_path)
    for rows in (data.train, data.eval):
        batch = rows.batch(range(len(rows)))
        assert batch["input_ids"].shape == batch["attention_mask"].shape and batch["input_ids"].shape[1] % 8 == 0
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            text = tokenizer.decode(ids[mask == 1])
            assert label == int((int(text.split()[-1]) % 9) - 4 > 0)  # text and label belong together, quotes and all
            assert (ids[mask == 0] == tokenizer.pad_token_id).all()
    data.prepare()
    assert "prepared already" in capsys.readouterr().err


def test_another_setting_is_another_folder(tmp_path: Path) -> None:
    data = labelled(tmp_path)
    assert labelled(tmp_path, sequence_length=4).folder != data.folder
    assert labelled(tmp_path, length_group=4).folder == data.folder  # how it is read, not what is kept
    assert data.fingerprint == labelled(tmp_path, length_group=4).fingerprint


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet"])
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f'he said "{WORDS[i % 8]}", twice, {i}', "label": "yes" if i % 3 else "no"} for i in range(30)]
    file = tmp_path / f"rows{suffix}"
    if ".csv" in suffix:
        text = "text,label\n" + "".join('"{}",{}\n'.format(r["text"].replace('"', '""'), r["label"]) for r in rows)
        file.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    elif suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(file))
    data = LabelledTexts(path=str(file), vocab_size=300, held_out=0, cache=str(tmp_path))
    data.prepare()
    assert data.label_names == ["no", "yes"] and data.eval is None
    text = load(data.tokenizer_path).decode(data.train[4]["input_ids"], skip_special_tokens=True)
    assert text == rows[4]["text"] and data.train[4]["labels"] == 1


def test_a_saved_data_set_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})
    rows = {"text": [f"{word} {i}" for i, word in enumerate(WORDS)], "label": [i % 2 for i in range(8)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    data = LabelledTexts(path=str(tmp_path / "saved"), vocab_size=300, held_out=0, cache=str(tmp_path))
    data.prepare()
    assert data.label_names == ["z", "a"] and data.train[1]["labels"] == 1


def test_numbers_are_floats_with_nan_where_a_batch_is_filled_up(tmp_path: Path) -> None:
    data = labelled(tmp_path, label_ranges=None, numbers=True, held_out=0.25)
    assert data.label_names is None and data.classes == 1
    held = list(eval_batches(data.eval, micro_batch_size=16))
    labels = np.concatenate([batch["labels"].numpy() for batch in held])
    assert labels.dtype == np.float32 and np.isfinite(labels).sum() == len(data.eval) == 20
    assert np.isnan(labels[20:]).all() and len(labels) == 32


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=30, max_size=90), folds=st.integers(2, 5), seed=st.integers(0, 99),
    copies=st.integers(1, 3),
)  # fmt: skip
def test_folds_are_a_stratified_partition(labels: list[int], folds: int, seed: int, copies: int) -> None:
    keys = [f"text {number // copies}" for number in range(len(labels))]
    strata = [labels[number // copies] for number in range(len(labels))]
    sizes = Counter(dict(zip(keys, strata, strict=True)).values())
    if min(sizes.values()) < folds:
        with pytest.raises(UserError, match="a fold would have none of it"):
            split_rows(keys, strata, 0.1, folds, 0, seed)
        return
    held = np.array([split_rows(keys, strata, 0.1, folds, fold, seed) for fold in range(folds)])
    assert (held.sum(0) == 1).all()  # each row in exactly one fold
    for one in held:
        assert not {k for k, out in zip(keys, one, strict=True) if out} & {
            k for k, out in zip(keys, one, strict=True) if not out
        }
        for label, size in sizes.items():
            there = len({k for k, out, of in zip(keys, one, strata, strict=True) if out and of == label})
            assert abs(there - size / folds) < 1


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=300), group=st.integers(1, 16), seed=st.integers(0, 9))
def test_length_groups_are_a_permutation_of_every_epoch(lengths: list[int], group: int, seed: int) -> None:
    order = LengthGroups(np.array(lengths, np.int32), seed, group)
    n = len(lengths)
    both = order(np.arange(2 * n))
    assert sorted(both[:n]) == sorted(both[n:]) == list(range(n))
    assert order(n + n // 2) == both[n + n // 2]


def test_length_groups_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 5000).astype(np.int32)
    padded = {}
    for group in (1, 32):
        rows = lengths[LengthGroups(lengths, 0, group)(np.arange(4992))].reshape(-1, 32)
        padded[group] = 1 - rows.sum() / (rows.max(1) * 32).sum()
    assert padded[32] < 0.05 < 0.4 < padded[1]


def test_the_order_does_not_depend_on_ranks(tmp_path: Path) -> None:
    data = labelled(tmp_path)

    def seen(world: int) -> list[list[int]]:
        ranks = [batches(data.train, seed=3, position=0, global_batch_size=8, micro_batch_size=2, rank=rank,
                         world_size=world) for rank in range(world)]  # fmt: skip
        steps = [[next(rank)[0] for rank in ranks] for _ in range(12)]
        for rank in ranks:
            rank.close()
        return [sorted(tuple(ids[ids != 0].tolist()) for step in parts for micro in step for ids in micro["input_ids"])
                for parts in steps]  # fmt: skip

    assert seen(1) == seen(2) == seen(4)


def test_tags_stand_at_the_first_token_of_their_word(tmp_path: Path) -> None:
    rows = [{"tokens": ["Captain", "Ahab", "sails"], "tags": ["O", "NAME", "O"]}] * 2
    (tmp_path / "tagged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(train(iter(["Captain Ahab sails", " x"]), 270), tmp_path / "tokenizer")
    data = TaggedWords(path=str(tmp_path / "tagged.jsonl"), tokenizer=str(tmp_path / "tokenizer"), held_out=0,
                       cache=str(tmp_path))  # fmt: skip
    data.prepare()
    assert data.label_names == ["NAME", "O"]
    row = data.train[0]
    tokens = load(data.tokenizer_path).convert_ids_to_tokens(row["input_ids"][row["attention_mask"] == 1])
    names = {tokens[at]: data.label_names[label] for at, label in enumerate(row["labels"]) if label != IGNORE}
    assert len(names) == 3 < len(tokens) and list(names.values()) == ["O", "NAME", "O"]
    assert [name.lstrip("Ġ")[0] for name in names] == ["C", "A", "s"]


def test_copies_of_a_pair_are_one_and_near_copies_lie_on_one_side(tmp_path: Path) -> None:
    lines = [f"{word} {i}?\tan answer to {word} {i}\n" for i in range(40) for word in WORDS[:3]]
    lines += lines[:20] + [line.replace("whale", "Whale!") for line in lines]
    (tmp_path / "pairs.tsv").write_text("source\ttarget\n" + "".join(lines))
    data = Pairs(path=str(tmp_path / "pairs.tsv"), vocab_size=300, held_out=0.3, cache=str(tmp_path))
    data.prepare()
    assert len(data.train) + len(data.eval) == 160
    tokenizer = load(data.tokenizer_path)

    def sources(rows: Any) -> set[str]:
        found = (tokenizer.decode(rows[i]["input_ids"], skip_special_tokens=True) for i in range(len(rows)))
        return {"".join(filter(str.isalnum, text.lower())) for text in found}

    assert not sources(data.train) & sources(data.eval)
    row = data.train[0]
    assert (row["labels"][row["labels"] != IGNORE])[-1] == tokenizer.eos_token_id
    assert row["input_ids"][row["attention_mask"] == 1][-1] == tokenizer.eos_token_id


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 60))
def test_packing_puts_each_in_one_bin_that_holds_it(lengths: list[int], size: int) -> None:
    bins = pack(lengths, size)
    assert sorted(number for members in bins for number in members) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in members) <= size for members in bins)
    filled = sorted(sum(lengths[number] for number in members) for members in bins)
    assert len(filled) < 2 or filled[0] + filled[1] > size  # no two of them would have gone into one


TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ishmael."},
        {"role": "user", "content": "Whose ship?"}, {"role": "assistant", "content": "Ahab's."}]  # fmt: skip


def chat_tokenizer(folder: Path) -> Any:
    from bigtrain.data.chats import CHATML

    save(train(iter([m["content"] for m in TALK] * 3), 300, ["<|im_start|>", "<|im_end|>"]), folder / "chat")
    tokenizer = load(folder / "chat")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "chat")
    return tokenizer


def test_targets_are_the_assistants_tokens_and_what_ends_its_turn(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path)
    ids, labels = encode_talk(TALK, tokenizer, 1000)
    assert all(label in (token, IGNORE) for token, label in zip(ids, labels, strict=True))
    said = tokenizer.decode([label for label in labels if label != IGNORE])
    assert said == "Ishmael.<|im_end|>\nAhab's.<|im_end|>\n"
    _, last = encode_talk(TALK, tokenizer, 1000, last_only=True)
    assert tokenizer.decode([label for label in last if label != IGNORE]) == "Ahab's.<|im_end|>\n"


@pytest.mark.parametrize(
    "talk",
    [TALK, [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ishmael."},
            {"from": "human", "value": "Whose ship?"}, {"from": "gpt", "value": "Ahab's."}],
     ["Who?", "Ishmael.", "Whose ship?", "Ahab's."]],
)  # fmt: skip
def test_every_way_to_write_a_conversation_is_the_same(talk: Any) -> None:
    assert messages(talk, 0, None) == TALK
    assert messages(talk, 0, "Be brief.")[0] == {"role": "system", "content": "Be brief."}


def test_packed_conversations_are_told_apart(tmp_path: Path) -> None:
    chat_tokenizer(tmp_path)
    (tmp_path / "talks.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{"role": "user", "content": f"Who {i}?"}, *TALK[1:]]}) + "\n" for i in range(9)
        )
    )
    data = Conversations(path=str(tmp_path / "talks.jsonl"), tokenizer=str(tmp_path / "chat"), held_out=0,
                         sequence_length=200, cache=str(tmp_path))  # fmt: skip
    data.prepare()
    batch = data.train.batch(range(len(data.train)))
    assert len(data.train) < 9 and set(batch) == {"input_ids", "labels", "document_ids"}
    for ids, documents in zip(batch["input_ids"], batch["document_ids"], strict=True):
        assert (np.diff(documents) >= 0).all() and documents[0] == 0
        starts = [0, *(np.flatnonzero(np.diff(documents)) + 1)]
        first = load(tmp_path / "chat").convert_tokens_to_ids("<|im_start|>")
        assert all(ids[at] == first for at in starts if ids[at] != 0)


BAD: dict[str, tuple[Any, str]] = {
    "two assistants": ([TALK[0], TALK[1], TALK[1]], r"conversation 1: turns 2 and 3 are both the assistant's"),
    "no assistant": ([TALK[0]], "conversation 1 has no assistant's turn"),
    "no role": ([{"who": "me", "content": "?"}], "turn 1: no known role and content"),
    "no list": ("Who?", "is no list of turns"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_conversation_that_is_none_is_refused(kind: str) -> None:
    talk, message = BAD[kind]
    with pytest.raises(UserError, match=message):
        messages(talk, 0, None)


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            labelled(tmp_path, **changes)
        assert not any((tmp_path / "cache").glob(".*")), "nothing is left behind"

    refused("data.text_column=txt: there is no such column.*Did you mean 'text'", text_column="txt")
    plain = tmp_path / "plain.tsv"
    plain.write_text("1\t2.5\tA fine film.\n2\t-2.5\tA dull one.\n")
    refused(r"There are: 1, 2.5, A fine film.. That looks like a row.*data.columns", path=str(plain), columns=None)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a", "rating": 2}\n' * 3 + '{"text": \n')
    refused("broken.jsonl: line 4 is not JSON", path=str(broken), columns=None)
    refused("none of the 2 in data.labels", label_ranges=None, labels=["-4", "-3"])
    refused("no row that can be used", label_ranges={"far": [99, None]})
    refused(r"60 folds.*a fold would have none of it", folds=60, fold=0)
    refused("no number in text", label_ranges=None, numbers=True, label_column="text")
    refused("no such file or folder.*Did you mean '.*/reviews.tsv'", path=str(tmp_path / "review.tsv"))
    for settings_, match in (
        ({"folds": 3}, "a fold from 0 to 2"),
        ({"held_out": 1.0}, "below 1"),
        ({"folds": 1, "fold": 0}, "at least 2"),
        ({"sequence_length": 0}, "data.sequence_length=0: at least 1"),
    ):
        with pytest.raises(UserError, match=match):
            LabelledTexts(path="x", **settings_)
    (tmp_path / "holes.csv").write_text("text,label\nfine,good\nodd,\n")
    refused(
        "row 2 has no label", path=str(tmp_path / "holes.csv"), columns=None, label_ranges=None, label_column="label"
    )


def test_a_template_that_is_lacking_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "talks.jsonl").write_text((json.dumps({"messages": TALK}) + "\n") * 2)

    def data(**changes: Any) -> Conversations:
        return Conversations(
            path=str(tmp_path / "talks.jsonl"), vocab_size=300, held_out=0, cache=str(tmp_path), **changes
        )

    with pytest.raises(UserError, match="no chat template: name one, as data.chat_template=chatml"):
        data().prepare()
    with pytest.raises(UserError, match="there is no such file; chatml is the one"):
        data(chat_template="chatlm").prepare()
    with_template = data(chat_template="chatml")
    with_template.prepare()
    keep_tokenizer(with_template, tmp_path)  # the run's tokenizer has it: `generate --chat` asks through it
    assert load(tmp_path / "tokenizer").chat_template == CHATML
    changing = tmp_path / "changing.jinja"
    changing.write_text("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match="changes earlier turns"):
        data(chat_template=str(changing)).prepare()


def test_preferences_differ_in_their_answers_only(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path)
    row = {"prompt": "Whose ship?", "chosen": "Ahab's.", "rejected": "Who?"}
    (tmp_path / "choices.jsonl").write_text(json.dumps(row) + "\n")
    data = Preferences(path=str(tmp_path / "choices.jsonl"), tokenizer=str(tmp_path / "chat"), held_out=0,
                       cache=str(tmp_path))  # fmt: skip
    data.prepare()
    batch = data.train.batch([0])
    assert batch["input_ids"].shape == batch["labels"].shape == (1, 2, batch["labels"].shape[2])
    answers = [tokenizer.decode(labels[labels != IGNORE]) for labels in batch["labels"][0]]
    assert answers == ["Ahab's.<|im_end|>\n", "Who?<|im_end|>\n"]
    prompt = int((batch["labels"][0, 0] != IGNORE).argmax())
    assert (batch["input_ids"][0, 0, :prompt] == batch["input_ids"][0, 1, :prompt]).all()


def test_texts_that_are_none_are_refused(tmp_path: Path) -> None:
    def refused(name: str, content: bytes, match: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=match):
            LabelledTexts(path=str(tmp_path / name), vocab_size=300, held_out=0, cache=str(tmp_path)).prepare()

    refused("latin.csv", "text,label\nfine,a\ncafé,b\n".encode("latin-1"), "text_column=text: row 2 is not UTF-8")
    refused("empty.csv", b"text,label\nfine,a\n ,b\n", "row 2 has no text")
    refused(
        "open.csv", b'text,label\nfine,a\nodd,"b\nwell,a\nill,b\n', "line 3: a quotation mark is opened there and ne"
    )
    refused("closed.csv", b'label,text\na,fine\nb,"odd\n or not"\n,last\n', "row 3 has no label")
    refused("one.csv", b"text,label\nfine,a\nwell,a\n", "all rows have the label 'a': nothing to tell apart")


def test_nothing_held_out_is_said(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "two.csv").write_text("text,label\nfine,a\nodd,b\n")
    LabelledTexts(path=str(tmp_path / "two.csv"), vocab_size=300, cache=str(tmp_path)).prepare()
    assert "note: nothing is held out" in capsys.readouterr().err
