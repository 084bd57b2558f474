"""What one call carries to the LLM's blocks, and what a KV cache remembers of the slots in it.

Shapes: B rows, T caller's tokens.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from mmpt.m2pt.folded import Folded
from mmpt.m2pt.layout import Layout

CALL = "m2pt_call"  # keyword argument that carries a `Call` from the host to the LLM's blocks
SLOTS = "m2pt_slots"  # attribute: of a KV cache its `CacheSlots`; of the tower's output the slots cut off it


@dataclass(frozen=True)
class CacheSlots:
    """The slots in a KV cache: of its first columns, T are the caller's and `added` are ours."""

    adapter: str
    columns: Tensor  # (B, T) where the caller's tokens stand
    added: int
    shift: Tensor  # (B, 1) by how much later positions of a row grow
    mask: Tensor | None  # (B, T + added), None if nothing is hidden
    early_mask: Tensor | None  # the same for the blocks before the first prompted one

    @property
    def tokens(self) -> int:
        return self.columns.shape[1]

    def select(self, rows: Tensor) -> "CacheSlots":
        """Those of a cache whose rows are `rows` of this one's."""
        mask, early = (None if m is None else m[rows] for m in (self.mask, self.early_mask))
        return replace(self, columns=self.columns[rows], shift=self.shift[rows], mask=mask, early_mask=early)

    def crop(self, seen: int) -> "CacheSlots":
        """Those of a cache that was cut to `seen` columns.

        Raises:
            ValueError: slots were cut off.
        """
        tokens = seen - self.added
        if tokens >= self.tokens:
            return self
        if tokens < 0 or (self.columns[:, tokens] != seen).any():
            raise ValueError(
                f"The cache was cut to {seen} columns, and prompts of {self.adapter!r} were cut off: "
                "cut it behind the pictures, or start from an empty cache."
            )
        mask, early = (None if m is None else m[:, :seen] for m in (self.mask, self.early_mask))
        return replace(self, columns=self.columns[:, :tokens], mask=mask, early_mask=early)

    def extend(self, mask: Tensor | None, attention_mask: Tensor | None, columns: int) -> Tensor | None:
        """`mask` continued to `columns` by the caller's (B, T) mask; None if nothing is hidden."""
        if mask is None and attention_mask is None:
            return None
        like = mask if mask is not None else attention_mask
        if mask is None:
            mask = like.new_ones(like.shape[0], self.tokens + self.added)
        if attention_mask is None:
            rest = like.new_ones(like.shape[0], columns - mask.shape[1])
        else:
            rest = attention_mask[:, self.tokens :].to(mask.dtype)
        return torch.cat([mask, rest], 1)


def added_columns(cache: Cache) -> int:
    """How many columns of a cache are slots."""
    slots = getattr(cache, SLOTS, None)
    return slots.added if slots else 0


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Make the cache's rows those of `rows`, which may repeat some."""
    cache.reorder_cache(rows)
    if slots := getattr(cache, SLOTS, None):
        setattr(cache, SLOTS, slots.select(rows))


@dataclass
class Call:
    """One forward pass: which adapter, where its slots are, and what the cache must remember."""

    adapter: str
    layout: Layout | None  # None in a decoding step
    early_mask: Any  # attention mask of the blocks before the first prompted one, None if there are none
    slots: CacheSlots
    folded: Folded | None = None  # the textual prompts, where they are no columns
    prompted: int = 0  # blocks that have written their prompts
