"""The map that MPT4LM makes possible: question word → visual prompt → patch, read off its cross-attention.

Notation: H heads, m visual prompts, T tokens that the queries read, N patches.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.segments import patch_boxes, token_kinds, view_of
from mmpt.mpt4lm import MPT4LMLayer


@dataclass
class CrossAttentionMaps:
    """What the visual prompts of one question on one picture were made from.

    Attributes:
        words: T texts of the tokens that the queries read, those of the chat's template among them.
        kinds: T names, "question" or, of the template's, "other".
        to_words: (H, m, T) shares of attention, a row sums to 1; None where the queries do not read the question.
        to_patches: (H, m, N) the same over the patches, row by row.
        grid: (rows, columns) of the patches.
        boxes: (N, 4) left, top, right, bottom of each patch in pixels of the picture.
    """

    words: list[str]
    kinds: list[str]
    to_words: Tensor | None
    to_patches: Tensor
    grid: tuple[int, int]
    boxes: Tensor

    def read_words(self) -> Tensor:
        """(m, T): share of each word in what a prompt read, mean over heads.

        Raises:
            InputError: the queries do not read the question.
        """
        if self.to_words is None:
            raise InputError("This adapter's queries do not read the question (condition_on_question=False).")
        return self.to_words.mean(0)

    def find(self, word: str) -> int:
        """Number of the last token that is this word, but for case and spaces.

        Raises:
            InputError: there is none.
        """
        words = [text.strip().lower() for text in self.words]
        if word.strip().lower() not in words:
            known = ", ".join(repr(text.strip()) for text in self.words if text.strip())
            raise InputError(f"The queries read no word {word!r}; give one of {known}.")
        return len(words) - 1 - words[::-1].index(word.strip().lower())

    def on_picture(self, prompts: list[int] | None = None) -> Tensor:
        """(rows, columns): share of each patch in what some prompts or all (None) read, mean over them and heads."""
        maps = self.to_patches if prompts is None else self.to_patches[:, prompts]
        return maps.mean((0, 1)).view(self.grid)

    def of_word(self, word: int) -> Tensor:
        """(rows, columns): the patches read by the prompts that read this token, weighted by how much they read it.

        The two attentions are composed as if a prompt carried each word in proportion to its share of attention, which
        is a picture of the wiring and no proof that the word sent it there: ask again with another word, and compare.

        Raises:
            InputError: the queries do not read the question.
        """
        share = self.read_words()[:, word]  # (m,)
        return (share / share.sum() @ self.to_patches.mean(0)).view(self.grid)


@torch.inference_mode()
def cross_attention(backbone: Backbone, image: Image.Image, question: str) -> CrossAttentionMaps:
    """The attention weights of the active MPT4LM adapter's two cross-attentions, from making its prompts once.

    Raises:
        InputError: no MPT4LM adapter is active, or it has no visual prompts.
    """
    layer = next((m for m in backbone.model.modules() if isinstance(m, MPT4LMLayer)), None)
    if layer is None or layer.active not in layer.mpt4lm_cross_attention:
        raise InputError(
            "Cross-attention is what MPT4LM makes its visual prompts by, and no such adapter is active; tune one with "
            "`python -m mmpt train --method mpt4lm`, or choose another view."
        )
    reads, weights = layer.mpt4lm_cross_attention[layer.active], {}
    batch = backbone.inputs([image], [question])
    with ExitStack() as hooks:
        for name in ("question", "picture"):
            if (read := getattr(reads, name)) is not None:
                hooks.callback(read.attention.register_forward_pre_hook(_ask_for_weights, with_kwargs=True).remove)
                hooks.callback(
                    read.attention.register_forward_hook(
                        lambda module, args, output, name=name: weights.update({name: output[1][0]})
                    ).remove
                )
        layer.host.llm_inputs(dict(batch))  # as far as the prompts: the LLM itself need not run
    pixels, size = batch["pixel_values"], layer.host.config.vision_config.patch_size
    grid = (pixels.shape[-2] // size, pixels.shape[-1] // size)
    ids = batch["input_ids"][0].tolist()
    words, (kinds, _) = [backbone.processor.tokenizer.decode([i]) for i in ids], token_kinds(backbone, ids, question)
    boxes = patch_boxes(grid, view_of(backbone.processor.image_processor, *image.size), *image.size)
    return CrossAttentionMaps(words, kinds, weights.get("question"), weights["picture"], grid, boxes)


def _ask_for_weights(module, args, kwargs):
    return args, kwargs | {"need_weights": True, "average_attn_weights": False}
