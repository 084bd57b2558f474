"""How likely the model finds answers to questions that it has read, and of closed questions the likeliest option.

Notation: B questions, T tokens of an answer with the one that ends it, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmpt.reading import Reading


@torch.inference_mode()
def log_probabilities(reading: Reading, answers: Sequence[Sequence[int]]) -> Tensor:
    """(B,) of one answer to each of B questions that were read; its token ids, the one that ends it among them."""
    ids = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True, padding_value=-1)  # (B, T)
    ids, logits = ids.to(reading.logits.device), reading.logits[:, None]
    if ids.shape[1] > 1:
        logits = torch.cat([logits, reading.ahead(ids[:, :-1].clamp(min=0))], 1)
        reading.back(ids.shape[1] - 1)
    values = logits.float().log_softmax(-1).gather(-1, ids.clamp(min=0)[..., None])[..., 0]
    return values.masked_fill(ids < 0, 0).sum(-1)


@torch.inference_mode()
def likeliest(reading: Reading, options) -> list[str]:
    """For each of B questions that were read, the one of its `options` of greatest log-probability as a whole answer.

    That is the sum over its tokens and the one that ends it, so it cannot exceed its first token's, which is known.
    So each question tries its options in the order of those until none left can win: as exact as trying all, and
    mostly over after one or two.
    """
    first = reading.logits.float().log_softmax(-1)
    tokens = {text: reading.backbone.answer_tokens(text) for row in options for text in row}
    waiting = [
        sorted(((first[i, tokens[text][0]].item(), text) for text in row), reverse=True)
        for i, row in enumerate(options)
    ]
    best = [(-math.inf, "")] * len(options)
    while open_rows := [i for i, row in enumerate(waiting) if row and row[0][0] > best[i][0]]:
        tried = {i: waiting[i].pop(0)[1] for i in open_rows}
        values = log_probabilities(reading, [tokens[tried[i]] if i in tried else [0] for i in range(len(options))])
        for i, text in tried.items():
            best[i] = max(best[i], (values[i].item(), text))
    return [text for _, text in best]
