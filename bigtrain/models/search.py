"""Beam search over a model that tells the next token's logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def beam_search(
    following: Callable[[Tensor, Tensor], Tensor],
    rows: int,
    beams: int,
    start_id: int,
    end_id: int,
    longest: int,
    device: torch.device,
) -> Tensor:
    """(rows, T) int64, T <= `longest`: for each row the text with the highest mean log-probability of its tokens.

    Args:
        following: (last token of every beam (rows · beams,), the beam (rows · beams,) that each goes on from) -> logits
            (rows · beams, V) of the next.
        rows: texts to be written.
        beams: kept at a time; 1: greedy.
        start_id: stands in front of every text.
        end_id: ends a text, and fills it up behind its end.
        longest: tokens, with the end.
        device: of the tokens.
    """
    texts = torch.full((rows, beams, 0), end_id, device=device)
    # At first all beams of a row are one: only the first may go on.
    scores = torch.full((rows, beams), -torch.inf, device=device)
    scores[:, 0] = 0.0
    ended = torch.zeros(rows, beams, dtype=torch.bool, device=device)
    lengths = torch.zeros(rows, beams, device=device)
    last = torch.full((rows * beams,), start_id, device=device)
    parents = torch.arange(rows * beams, device=device)
    offsets = torch.arange(rows, device=device)[:, None] * beams
    for _ in range(longest):
        steps = following(last, parents).float().log_softmax(-1).view(rows, beams, -1)
        vocabulary = steps.shape[-1]
        # What has ended goes on as it is, at no cost.
        steps = steps.masked_fill(ended[..., None], -torch.inf)
        steps[..., end_id] = steps[..., end_id].masked_fill(ended, 0.0)
        total = scores[..., None] + steps
        mean = total / (lengths + (~ended).float()).clamp(min=1)[..., None]
        best = mean.view(rows, -1).topk(beams, dim=-1).indices
        beam, token = best // vocabulary, best % vocabulary
        scores = total.view(rows, -1).gather(1, best)
        lengths = lengths.gather(1, beam) + (~ended.gather(1, beam)).float()
        ended = ended.gather(1, beam) | (token == end_id)
        texts = torch.cat([texts.gather(1, beam[..., None].expand(-1, -1, texts.shape[-1])), token[..., None]], -1)
        last, parents = token.flatten(), (offsets + beam).flatten()
        if ended.all():
            break
    chosen = (scores / lengths.clamp(min=1)).argmax(-1)
    return texts[torch.arange(rows, device=device), chosen]
