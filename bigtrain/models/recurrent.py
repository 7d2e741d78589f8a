"""An LSTM encoder and decoder with attention: Sutskever et al. 2014, Luong et al. 2015 (arXiv:1508.04025).

Shapes: B samples, S tokens of the source, T of the target, W width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bigtrain.errors import UserError
from bigtrain.models.search import beam_search

State = tuple[Tensor, Tensor]


def shuffled(ids: Tensor, attention_mask: Tensor, share: float) -> Tensor:
    """ids (B, S) with the tokens of a random share of the samples in random order; padding stays behind them."""
    keys = torch.rand(ids.shape, device=ids.device).masked_fill(attention_mask == 0, 2.0)
    stay = torch.rand(len(ids), 1, device=ids.device) >= share
    at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return ids.gather(1, at.where(stay, keys.argsort(1)))


def unread(words: Tensor, most: float) -> Tensor:
    """words (B, S, W) of which some are zeros: of each sample a share of its own, from 0 to `most`.

    So that a text is learnt whole too. With one share of 0.5 for all, hardly any ever was.
    """
    share = most * torch.rand(len(words), 1, 1, device=words.device)
    return words * (torch.rand(*words.shape[:2], 1, device=words.device) >= share)


class LSTMSeq2Seq(nn.Module):
    """Reads a text in both directions, then writes another, looking at all that it has read at every token.

    What is computed of a sample does not depend on how far its batch is padded.
    """

    task = "seq2seq"

    def __init__(
        self,
        vocab_size: int,
        width: int,
        layers: int,
        dropout: float,
        word_dropout: float,
        word_shuffle: float,
        lexical: bool,
        tied: bool,
        start_id: int,
    ) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise UserError(f"model.width={width}: an even number from 2 on, half of it for each direction of reading.")
        if layers < 1:
            raise UserError(f"model.layers={layers}: at least 1.")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: at least 0 and below 1.")
        for name, share in ("word_dropout", word_dropout), ("word_shuffle", word_shuffle):
            if not 0 <= share <= 1:
                raise UserError(f"model.{name}={share}: a share, from 0 to 1.")
        self.vocab_size, self.start_id, self.layers = vocab_size, start_id, layers
        self.word_dropout, self.word_shuffle = word_dropout, word_shuffle
        self.embedding = nn.Embedding(vocab_size, width)
        inside = dropout if layers > 1 else 0.0
        self.encoder = nn.LSTM(width, width // 2, layers, dropout=inside, bidirectional=True, batch_first=True)
        self.decoder = nn.LSTM(width, width, layers, dropout=inside, batch_first=True)
        self.query = nn.Linear(width, width, bias=False)
        self.join = nn.Linear(2 * width, width)
        self.lexical = nn.Linear(width, width) if lexical else None
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """input_ids, attention_mask (B, S), labels (B, T) with -100 behind their end -> logits (B, T, V).

        At each token the decoder is given the right one before it (teacher forcing), at the first `start_id`.
        """
        memory, state = self.read(input_ids, attention_mask)
        before = labels.clamp(min=0)[:, :-1]
        start = before.new_full((len(labels), 1), self.start_id)
        logits, _ = self.write(torch.cat([start, before], 1), state, memory, attention_mask)
        return logits

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, State]:
        """(memory (B, S, W), the decoder's first state (layers, B, W) twice)."""
        lengths = attention_mask.sum(1).clamp(min=1).cpu()
        if self.training and self.word_shuffle:
            input_ids = shuffled(input_ids, attention_mask, self.word_shuffle)
        words = self._embedded(input_ids)
        if self.training and self.word_dropout:
            words = unread(words, self.word_dropout)
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        read, (hidden, cell) = self.encoder(packed)
        memory, _ = pad_packed_sequence(read, batch_first=True, total_length=input_ids.shape[1])
        # beside what was read around each word, the word itself: by it a question is known again in other words
        return memory + words, (self._both(hidden), self._both(cell))

    def write(self, ids: Tensor, state: State, memory: Tensor, attention_mask: Tensor) -> tuple[Tensor, State]:
        """ids (B, T), each the token before -> logits (B, T, V), and the state after them."""
        written, state = self.decoder(self._embedded(ids), state)
        scores = self.query(written) @ memory.transpose(1, 2)
        lowest = torch.finfo(scores.dtype).min  # finite: a row that fills a batch up may have nothing to look at
        weights = scores.masked_fill(attention_mask[:, None] == 0, lowest).softmax(-1)
        looked = weights @ memory
        joined = torch.tanh(self.join(torch.cat([written, looked], -1)))
        if self.lexical is not None:  # the words that are looked at, and a translation of each, straight to the head
            joined = joined + looked + torch.tanh(self.lexical(looked))
        logits: Tensor = self.head(self.dropout(joined))
        return logits, state

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, *, max_new_tokens: int, beams: int, end_id: int
    ) -> Tensor:
        """(B, T) int64: the likeliest texts that beam search finds (1: greedy), ended and filled up by `end_id`."""
        memory, (hidden, cell) = self.read(input_ids, attention_mask)
        rows = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(beams)
        memory, mask = memory[rows], attention_mask[rows]
        state = hidden[:, rows], cell[:, rows]

        def following(last: Tensor, parents: Tensor) -> Tensor:
            nonlocal state  # the source of a row is its own for good: only the decoder's state moves with the beams
            logits, state = self.write(last[:, None], (state[0][:, parents], state[1][:, parents]), memory, mask)
            return logits[:, -1]

        return beam_search(following, len(input_ids), beams, self.start_id, end_id, max_new_tokens, input_ids.device)

    def _embedded(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.embedding(ids))
        return embedded

    def _both(self, states: Tensor) -> Tensor:
        """(2 layers, B, W/2) of both directions -> (layers, B, W)."""
        forth, back = states.view(self.layers, 2, *states.shape[1:]).unbind(1)
        return torch.cat([forth, back], -1).contiguous()
