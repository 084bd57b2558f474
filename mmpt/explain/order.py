"""Whether textual prompts can look at visual ones, and whether what they see can reach the answer: read off the order
and the update of an M²PT adapter, for nothing but the configuration decides it."""

from dataclasses import dataclass

from mmpt.m2pt.layer import Settings


@dataclass(frozen=True)
class Order:
    """Attention from textual to visual prompts.

    Attributes:
        exists: the LLM layers, from 0, in which a textual prompt can look at a visual one.
        counts: those of them whose result is read by a later layer, and so can reach the answer.
        sentence: the same in words, layers counted from 1, with the direction that exists where this one does not.
    """

    exists: tuple[int, ...]
    counts: tuple[int, ...]
    sentence: str


def order(settings: Settings | None, depth: int) -> Order:
    """What holds under the settings of an adapter, None if none of M²PT is active, in an LLM of `depth` layers.

    A slot's output at a layer is thrown away if the next layer overwrites the slot, and at the last layer always,
    since only the caller's own positions are read there.
    """
    missing = _missing(settings)
    if missing:
        return Order((), (), missing)
    config, layers = settings.config, settings.textual_layers
    alive = range(layers[0], depth)
    if config.textual_position == "first":
        sentence = (
            "The textual prompts stand before the picture, and a position sees only itself and what stands before it: "
            "no textual prompt looks at a visual prompt. The other direction exists: visual prompts, patches, "
            f"question and answer look at the textual prompts, in {_words(alive)}."
        )
        return Order((), (), sentence + _parameter(config))
    counts = tuple(j for j in alive[:-1] if config.textual_update == "carry" or j + 1 not in layers)
    seen = f"The textual prompts stand after the picture and look at visual prompts and patches, in {_words(alive)}"
    if not counts:
        sentence = (
            f"{seen}, but every slot is overwritten before the next layer reads it, or is read by none: nothing of "
            "what they see can reach the answer. The direction that can: question and answer look at both kinds of "
            "prompts."
        )
    elif config.textual_update == "carry":
        sentence = f"{seen}; each slot carries what it gathered on to the next layer, so from {_words(counts)} it can "
        sentence += "reach the answer."
    else:
        sentence = f"{seen}; slots are overwritten at the input of {_words(layers)}, so only what they see in "
        sentence += f"{_words(counts)} can reach the answer."
    return Order(tuple(alive), counts, sentence + _parameter(config))


def _missing(settings):
    """Why there is nothing to look from or at, or None."""
    if settings is None:
        return "No M²PT adapter is active, so there are no prompts: question and answer look at the patches."
    if not settings.textual_layers:
        return "This adapter has no textual prompts that could look at visual ones."
    if not settings.visual_layers:
        return "This adapter has no visual prompts that textual ones could look at."
    if not settings.extra_tokens:
        return (
            "The visual prompts act inside the vision tower only (visual_readout='none'): in the language model there "
            "are none to look at, and they show in the patches alone."
        )
    return None


def _parameter(config):
    if config.visual_readout != "parameter":
        return ""
    return (
        " The visual prompts seen there are raw parameters, the same for every picture (visual_readout='parameter')."
    )


def _words(layers):
    """(0, 1, 2, 5) -> "layers 1 to 3 and 6"."""
    runs = []
    for j in layers:
        if runs and runs[-1][1] == j - 1:
            runs[-1][1] = j
        else:
            runs.append([j, j])
    parts = [f"{a + 1}" if a == b else f"{a + 1} {'and' if b == a + 1 else 'to'} {b + 1}" for a, b in runs]
    return (
        ("layer " if len(layers) == 1 else "layers ") + ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]
    )
