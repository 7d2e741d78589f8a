"""The LSTM that makes a text from a text, and the search for the likeliest one."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.models import lstm
from bigtrain.models.recurrent import LSTMSeq2Seq, shuffled, unread
from bigtrain.models.search import beam_search

END = 0


def model(**changes: object) -> LSTMSeq2Seq:
    torch.manual_seed(1)
    made = lstm(**{"vocab_size": 11, "width": 16, "layers": 2, "dropout": 0.0} | changes)  # type: ignore[arg-type]
    assert isinstance(made, LSTMSeq2Seq)
    return made


def batch(pad: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    labels = torch.tensor([[2, 3, 0], [4, 0, -100]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    wide = torch.nn.functional.pad
    return {"input_ids": wide(ids, (0, pad)), "attention_mask": wide(mask, (0, pad)),
            "labels": wide(labels, (0, pad), value=-100)}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_a_sample_does_not_depend_on_padding_or_its_batch(tied: bool) -> None:
    made = model(tied=tied)
    whole = made(**batch())
    torch.testing.assert_close(made(**batch(pad=5))[:, :3], whole)
    alone = {name: values[1:] for name, values in batch().items()}
    alone["input_ids"], alone["attention_mask"] = alone["input_ids"][:, :2], alone["attention_mask"][:, :2]
    torch.testing.assert_close(made(**alone), whole[1:])


def test_a_token_sees_no_later_label() -> None:
    made, one, other = model(), batch(), batch()
    other["labels"][0, 2] = 9
    torch.testing.assert_close(made(**one)[0, :3], made(**other)[0, :3])
    other["labels"][0, 0] = 9
    assert not torch.allclose(made(**one)[0, 1], made(**other)[0, 1])


def test_nothing_to_read_gives_finite_logits() -> None:
    empty = batch()
    empty["attention_mask"][1] = 0
    assert torch.isfinite(model()(**empty)).all()


def test_the_search_finds_what_trying_all_finds() -> None:
    """With as many beams as there are texts nothing is dropped; so is the likeliest by mean log-probability."""
    torch.manual_seed(0)
    vocabulary, longest = 4, 3
    table = torch.randn(vocabulary, vocabulary) * 2  # logits of the next token by the last one

    def score(text: tuple[int, ...]) -> float:
        last, total = 1, 0.0
        for token in text:
            total += float(table[last].log_softmax(-1)[token])
            last = token
        return total / len(text)

    texts = {
        text[: text.index(END) + 1] if END in text else text for text in product(range(vocabulary), repeat=longest)
    }
    right = max(texts, key=score)
    found = beam_search(lambda last, parents: table[last], 2, 64, 1, END, longest, torch.device("cpu"))
    for row in found.tolist():
        assert tuple(row[: len(right)]) == right and set(row[len(right) :]) <= {END}


def test_one_beam_is_greedy() -> None:
    made = model().eval()
    inputs = {name: values for name, values in batch().items() if name != "labels"}
    found = made.generate(**inputs, max_new_tokens=6, beams=1, end_id=END)
    for row in range(2):
        text: list[int] = []
        while len(text) < found.shape[1] and (not text or text[-1] != END):
            labels = torch.tensor([[*text, 1]])  # the last one is not looked at
            text.append(int(made(inputs["input_ids"][[row]], inputs["attention_mask"][[row]], labels)[0, -1].argmax()))
        assert found[row].tolist() == text + [END] * (found.shape[1] - len(text))
    several = made.generate(**inputs, max_new_tokens=6, beams=3, end_id=END)
    assert several.shape[0] == 2 and several.shape[1] <= 6


def test_shuffled_are_the_same_tokens_and_padding_stays() -> None:
    torch.manual_seed(0)
    given = batch()
    ids = torch.arange(2000).view(100, 20) + 1
    mask = (torch.arange(20) < 15).long().expand(100, 20)
    ids = ids * mask
    found = shuffled(ids, mask, 0.5)
    assert torch.equal(found.sort(1).values, ids.sort(1).values) and torch.equal(found[:, 15:], ids[:, 15:])
    assert 30 <= (found != ids).any(1).sum() <= 70
    made = model(word_shuffle=1.0).eval()
    torch.testing.assert_close(made(**given), model().eval()(**given))  # not while evaluating


@pytest.mark.parametrize("lexical", [False, True])
def test_it_learns_to_copy(lexical: bool) -> None:
    made = model(width=32, layers=1, lexical=lexical)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        ids = torch.randint(1, 11, (16, 4), generator=generator)
        labels = torch.cat([ids, torch.zeros(16, 1, dtype=torch.long)], 1)
        logits = made(ids, torch.ones_like(ids), labels)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = torch.tensor([[3, 9, 1, 4]])
    assert made.generate(ids, torch.ones_like(ids), max_new_tokens=6, beams=2, end_id=END).tolist() == [[3, 9, 1, 4, 0]]


WRONG: list[tuple[dict[str, object], str]] = [
    ({"width": 15}, "even number"),
    ({"layers": 0}, "at least 1"),
    ({"word_shuffle": 1.5}, "word_shuffle=1.5: a share"),
    ({"vocab_size": None}, "vocab_size has no value"),
]


@pytest.mark.parametrize(("changes", "match"), WRONG)
def test_shapes_that_cannot_be(changes: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        model(**changes)


def test_unread_is_a_share_of_its_own_of_each_sample() -> None:
    torch.manual_seed(0)
    words = torch.ones(400, 200, 3)
    found = unread(words, 0.8)
    assert ((found == 0) | (found == 1)).all(), "what is read is read as it was"
    assert (found[..., 0] == found[..., 2]).all(), "tokens are left out whole"
    shares = (found[..., 0] == 0).float().mean(1)
    assert shares.min() < 0.05 and 0.72 < shares.max() < 0.95, "from texts as good as whole to those with a fifth left"
    assert abs(shares.mean() - 0.4) < 0.03
    assert (unread(words, 0.0) == words).all()
