"""Where the prompts stand before the text, and what a KV cache remembers of them.

Shapes: B rows, S columns of prompts, T caller's tokens, D width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmpt.m2pt.slots import SLOTS


@dataclass(frozen=True)
class Prefix:
    """S columns before the text: `visible` (B, S), 0 where a row without a picture has no visual prompts."""

    adapter: str
    visible: Tensor

    @property
    def added(self) -> int:
        """Columns that the caller does not know of."""
        return self.visible.shape[1]

    @property
    def shift(self) -> Tensor:
        """(B, 1) by how much the positions of a row's tokens grow."""
        return self.visible.sum(1, keepdim=True)

    def select(self, rows: Tensor) -> "Prefix":
        """That of a cache whose rows are `rows` of this one's."""
        return replace(self, visible=self.visible[rows])

    def before_decoder(self, embeds: Tensor, mask: Tensor, positions: Tensor | None) -> dict:
        """Inputs of a decoder-only LLM that is to read `embeds` (B, S + T, D): prompts, then the caller's columns.

        Padding at the left then stands between prompts and text, out of sight; positions go on across it.
        """
        seen = torch.cat([self.visible, mask], 1)
        if positions is None:
            positions = _count(seen)
        else:
            first = positions.expand_as(mask).gather(1, mask.argmax(1, keepdim=True))
            positions = torch.cat([first + _count(self.visible), positions + self.shift], 1)
        return {"inputs_embeds": embeds, "attention_mask": seen, "position_ids": positions, SLOTS: self}

    def before_encoder(self, embeds: Tensor, mask: Tensor) -> dict:
        """Inputs of an encoder that counts distances in columns: each row's visible columns first, the rest after."""
        seen = torch.cat([self.visible, mask], 1)
        order = seen.argsort(dim=1, descending=True, stable=True)
        embeds = embeds.gather(1, order[..., None].expand_as(embeds))
        return {"inputs_embeds": embeds, "attention_mask": seen.gather(1, order)}

    def continued(self, inputs: dict, seen: int) -> dict:
        """Inputs of a decoding step: nothing to insert, but mask and positions must count the prompts in the cache.

        Raises:
            ValueError: a mask that does not cover cache and tokens.
        """
        given = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        total = seen - self.added + given.shape[1]
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        if mask is None:
            mask = self.visible.new_ones(len(given), total)
        elif mask.shape[1] != total:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, but the cache holds {seen - self.added} tokens and "
                f"{given.shape[1]} are given: pass the mask of all {total}."
            )
        mask = torch.cat([self.visible, mask], 1)
        positions = _count(mask)[:, -given.shape[1] :] if positions is None else positions + self.shift
        return inputs | {"attention_mask": mask, "position_ids": positions}


def question_tokens(inputs: dict, mask: Tensor, read: Tensor, labelled: bool) -> Tensor:
    """(B, T) bool: the tokens that the queries may read; one at least in every row, so that attention is finite.

    Args:
        read: (B,) bool, the rows whose question matters.
        labelled: whether labels, if any, stand at the tokens of `mask`; an answer must not be read before it is said.

    Raises:
        ValueError: a row whose question matters has none.
    """
    question, given, labels = mask.bool(), inputs.get("question_mask"), inputs.get("labels")
    if given is None and labels is not None and labelled:
        given = (labels != -100).cumsum(1) == 0
    if given is not None:
        given = torch.nn.functional.pad(given.bool(), (0, mask.shape[1] - given.shape[1]))
        question = question & given
    none = ~question.any(1)
    if (none & read).any():
        row = int((none & read).int().argmax())
        raise ValueError(
            f"Row {row} has no question for the visual prompts to be made from: set labels to -100 at the question, "
            "or pass question_mask."
        )
    return question | none[:, None] & (torch.arange(mask.shape[1], device=mask.device) == 0)


def _count(visible: Tensor) -> Tensor:
    """Positions that padding does not advance."""
    return (visible.cumsum(1) - 1).clamp(min=0)
