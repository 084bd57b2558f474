"""Closed questions: which of their options the model finds likeliest.

Notation: B questions, T tokens of the options, V vocabulary.
"""

import math

import torch
from torch.nn.utils.rnn import pad_sequence

from mmpt.reading import Reading


@torch.inference_mode()
def likeliest(reading: Reading, options) -> list[str]:
    """For each of B questions that were read, the one of its `options` of greatest log-probability as a whole answer.

    That is the sum over its tokens and the one that ends it, so it cannot exceed its first token's, which is known.
    So each question tries its options in the order of those until none left can win: as exact as trying all, and
    mostly over after one or two.
    """
    tokenizer = reading.backbone.processor.tokenizer
    end, first = tokenizer.eos_token_id, reading.logits.float().log_softmax(-1)
    texts = {text for row in options for text in row}
    tokens = {text: [*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts}
    waiting = [
        sorted(((first[i, tokens[text][0]].item(), text) for text in row), reverse=True)
        for i, row in enumerate(options)
    ]
    best = [(-math.inf, "")] * len(options)
    while open_rows := [i for i, row in enumerate(waiting) if row and row[0][0] > best[i][0]]:
        tried = {i: waiting[i].pop(0) for i in open_rows}
        ids = [torch.tensor(tokens[tried[i][1]] if i in tried else [end, end]) for i in range(len(options))]
        ids = pad_sequence(ids, batch_first=True, padding_value=end).to(first.device)  # (B, T + 1)
        logits = reading.ahead(ids[:, :-1])
        reading.back(ids.shape[1] - 1)
        after = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T)
        for i, (value, text) in tried.items():
            best[i] = max(best[i], (value + after[i, : len(tokens[text]) - 1].sum().item(), text))
    return [text for _, text in best]
