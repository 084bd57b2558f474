"""Closed questions answered twice from one reading of picture and question: the likeliest option, and freely.

Notation: B rows, T tokens of the options, V vocabulary.
"""

import math

import torch
from torch.nn.utils.rnn import pad_sequence

from mmpt.backbones import Backbone


@torch.inference_mode()
def choose_and_answer(
    backbone: Backbone, images, questions, options, max_new_tokens: int = 16
) -> tuple[list[str], list[str]]:
    """For each row the likeliest of its `options`, and the greedy answer.

    Args:
        images, questions: one of each a row.
        options: the texts to choose from, a row.

    Returns:
        B chosen options, B answers.
    """
    batch = backbone.inputs(images, questions)
    positions = _positions(batch["attention_mask"])
    output = backbone.model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    first = output.logits[:, -1].float().log_softmax(-1)
    chosen = _likeliest(backbone, batch["attention_mask"], first, cache, options)
    cache.crop(-1)  # generate reads the last token itself
    tokens = backbone.model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    texts = backbone.processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return chosen, [text.strip() for text in texts]


def _likeliest(backbone, mask, first, cache, options):
    """The option of greatest log-probability as a whole answer: of its tokens and the one that ends it.

    That cannot exceed its first token's, `first` (B, V). So each row tries its options in the order of those, until
    none left can win: as exact as trying all, and mostly over after one or two.
    """
    tokenizer = backbone.processor.tokenizer
    end = tokenizer.eos_token_id
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
        whole = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - 1)], 1)
        logits = backbone.model(
            input_ids=ids[:, :-1],
            attention_mask=whole,
            position_ids=_positions(whole)[:, mask.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).logits
        cache.crop(1 - ids.shape[1])
        after = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T)
        for i, (value, text) in tried.items():
            best[i] = max(best[i], (value + after[i, : len(tokens[text]) - 1].sum().item(), text))
    return [text for _, text in best]


def _positions(mask):
    """As `generate` counts them: padding on the left does not."""
    return (mask.cumsum(1) - 1).clamp(min=0)
