"""The vocabulary words nearest to each textual prompt, layer by layer.

Notation: L prompted layers, P prompts, W words of the vocabulary, K nearest ones, R random vectors, D width.

A prompt of layer j takes the place of a hidden state at the input of layer j. It is no word, and nothing makes it come
near one: tuning looked for what helps, not for what can be read. So the words hint at a direction, and the similarity
beside each says how faint the hint is. There are three places to compare, and they disagree:

    "embedding"  cosine with the words' input embeddings. That is where layer 1's prompts live; those of later layers
                 live in a space that the layers before have moved.
    "layer"      cosine with what each word has become at the input of that same layer, read on its own after the start
                 token (quite alone it would be the attention sink). The right space, for words without their context.
    "head"       the words that the output head reads from the prompt after the final norm, as logits ("logit lens",
                 nostalgebraist 2020): what such a state would make the model say if no layer came after it.

The words' median is subtracted before a cosine is taken: what all states share is most of each in the upper layers, so
that everything would be near everything (the mean of Mu & Viswanath, ICLR 2018, would follow the few words that have
become sinks). Under textual_update="carry" a prompt after the first layer is not a state but is added to one, so the
median is subtracted from the words alone: the question is then towards which words it pushes.

Where a prompt is small beside the median, the difference is mostly the median turned round, whatever the prompt, and
comes near to some word or other. So beside each cosine stands what 19 of 20 random vectors of the prompt's length do
not exceed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.segments import prompt_layer

SPACES = ("embedding", "layer", "head")
FIRST, RANDOM = 2000, 100  # tokens that are read for "layer"; random vectors


@dataclass
class Nearest:
    """The nearest words.

    Attributes:
        space: where they were compared, one of `SPACES`.
        layers: the L layers that have prompts, from 0.
        words: (L, P, K) nested lists of texts, nearest first.
        values: (L, P, K) cosines, or logits for "head".
        compared: W. For "layer" these are the vocabulary's first, which in a byte-pair vocabulary are the most
            frequent; the other spaces compare with all.
        chance: (L, P) what 19 of 20 random vectors, as long as the prompt and moved by the same median, do not exceed
            in their cosine with the word nearest to each; None for "head". A word that is no nearer says nothing.
    """

    space: str
    layers: tuple[int, ...]
    words: list[list[list[str]]]
    values: Tensor
    compared: int
    chance: Tensor | None


@torch.inference_mode()
def nearest_words(backbone: Backbone, space: str = "layer", count: int = 5) -> Nearest:
    """The `count` words nearest to each textual prompt of the active adapter.

    Raises:
        InputError: the active adapter has no textual prompts, or there is no such space.
    """
    layer, settings = prompt_layer(backbone)
    if settings is None or not settings.textual_layers:
        raise InputError("No textual prompts are active, so there are none to name; load an adapter that has some.")
    if space not in SPACES:
        raise InputError(f"There is no space {space!r} to compare in; choose one of {', '.join(SPACES)}.")
    layers = settings.textual_layers
    prompts = [layer.m2pt_textual_prompts[layer.active][str(j)].float() for j in layers]  # L of (P, D)
    host, lm_head = layer.backbone.host, layer.backbone.generator.lm_head
    tokens, chance = torch.arange(lm_head.out_features), None
    if space == "head":
        norm = layer.backbone.llm.norm
        scores = [lm_head(norm(p.to(lm_head.weight))).float() for p in prompts]
    else:
        if space == "layer":
            tokens = _words(backbone.processor.tokenizer)
            references = [_directions(states) for states in _read(backbone, layer.backbone.llm, tokens, layers)]
        else:
            table = host.get_input_embeddings()
            scale = getattr(table, "embed_scale", 1.0)  # Gemma's
            references = [_directions(scale * table.weight.float())] * len(layers)
        is_state = [settings.config.textual_update == "replace" or j == layers[0] for j in layers]
        places = [(p, centre * s, words) for p, s, (centre, words) in zip(prompts, is_state, references)]
        scores = [normalize(p - centre, dim=-1) @ words.T for p, centre, words in places]
        chance = torch.stack([_chance(*place) for place in places]).cpu()
    values, found = zip(*(score.topk(count) for score in scores))
    decode = backbone.processor.tokenizer.decode
    words = [[[decode([i]) for i in row] for row in tokens[rows.cpu()].tolist()] for rows in found]
    return Nearest(space, layers, words, torch.stack(values).cpu(), len(tokens), chance)


def _directions(words):
    """(W, D) -> their median (D,), and the unit vectors from there to each."""
    centre = words.median(0).values
    return centre, normalize(words - centre, dim=-1)


def _chance(prompts, centre, words):
    """(P,) `Nearest.chance` of the prompts (P, D) of a layer."""
    generator = torch.Generator().manual_seed(0)
    drawn = normalize(torch.randn(RANDOM, len(centre), generator=generator), dim=-1).to(words)  # (R, D)
    toward, away = drawn @ words.T, words @ centre  # (R, W), (W,)
    lengths = prompts.norm(dim=-1)
    nearest = [(n * toward - away).amax(1) / (n * drawn - centre).norm(dim=-1).clamp(min=1e-12) for n in lengths]
    return torch.stack(nearest).quantile(0.95, dim=1)


def _words(tokenizer):
    """(W,) the first tokens of the vocabulary that stand for text."""
    special = set(tokenizer.all_special_ids)
    return torch.tensor([i for i in range(len(tokenizer)) if i not in special][:FIRST])


def _read(backbone, language_model, tokens, layers):
    """For each of `layers`, its inputs (W, D) at `tokens` that are each read right after the start token."""
    start = backbone.processor.tokenizer(backbone.conversation([("", None)], True))["input_ids"][0]
    pairs = torch.stack([torch.full_like(tokens, start), tokens], 1).to(language_model.device)  # (W, 2)
    states = [[] for _ in layers]
    for part in pairs.split(500):
        hidden = language_model(input_ids=part, use_cache=False, output_hidden_states=True).hidden_states
        for found, j in zip(states, layers):
            found.append(hidden[j][:, 1].float())
    return [torch.cat(found) for found in states]
