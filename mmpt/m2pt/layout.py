"""Where prompt slots go in a batch of token rows, and where the caller's tokens move to.

Textual slots stand once a row, visual slots before each image's patches. Rows with different numbers of images get
different numbers of slots; the shorter ones are padded at the left, out of everybody's sight.

Shapes: B rows, T caller's columns, S columns with slots, P textual slots, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PAD, TEXTUAL, VISUAL, IMAGE, TEXT = range(5)  # what a column holds, see `Layout.segments`


@dataclass
class Layout:
    """The result of `insert_slots`.

    Attributes:
        tokens: (B, T) the new column of each of the caller's tokens.
        textual: (B, P) the columns of the textual slots.
        visual: (B, S) bool, the visual slots.
        pad: (B, S) bool, the padding that evens out the rows, or None if they are even.
        before: (B, T + 1) slots inserted anywhere before each column of the caller's, its own included.
        textual_at: (B,) the caller's column that the textual slots precede.
        after_image: (B,) bool, whether they follow an image.
    """

    tokens: Tensor
    textual: Tensor
    visual: Tensor
    pad: Tensor | None
    before: Tensor
    textual_at: Tensor
    after_image: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.visual.shape

    @property
    def added(self) -> int:
        """Columns that the caller does not know of: S - T."""
        return self.visual.shape[1] - self.tokens.shape[1]

    @property
    def shift(self) -> Tensor:
        """(B, 1) by how much the position of a row's next token grows."""
        return self.before[:, -1:]

    def ids(self, input_ids: Tensor, image_token_id: int) -> Tensor:
        """(B, S) ids with placeholders in the visual slots and any other token elsewhere."""
        filler = 1 if image_token_id == 0 else 0
        out = torch.where(self.visual, image_token_id, filler).to(input_ids.dtype)
        return out.scatter(1, self.tokens, input_ids)

    def embeds(self, inputs_embeds: Tensor, image_embedding: Tensor) -> Tensor:
        """(B, S, D) the same for embeddings; the host knows placeholders by their value, so fillers must differ."""
        out = torch.where(self.visual[..., None], image_embedding, image_embedding + 1).to(inputs_embeds.dtype)
        return out.scatter(1, _wide(self.tokens, out), inputs_embeds)

    def mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """(B, S) the mask with slots visible, or None if there is nothing to hide."""
        if attention_mask is None:
            return None if self.pad is None else (~self.pad).long()
        out = attention_mask.new_ones(self.shape)
        out = out if self.pad is None else out.masked_fill(self.pad, 0)
        return out.scatter(1, self.tokens, attention_mask)

    def types(self, token_type_ids: Tensor, visual: int) -> Tensor:
        """(B, S) token types: `visual` for the visual slots, and 0, as a prompt in words has it, for the others."""
        return torch.where(self.visual, visual, 0).to(token_type_ids.dtype).scatter(1, self.tokens, token_type_ids)

    def positions(self, position_ids: Tensor) -> Tensor:
        """(B, S) positions counted as if the slots had been typed in: each moves what follows by one.

        Hosts that count a picture's rows and columns have three of them, (3, B, S), and one more in front that counts
        tokens, if `generate` made them; what follows a picture comes after the highest of the three.
        """
        if position_ids.ndim == 2:
            return self._counted(position_ids, position_ids)
        highest = position_ids[-3:].amax(0)
        axes = [self._counted(axis, highest) for axis in position_ids[-3:]]
        return torch.stack([*(self._counted(axis, axis) for axis in position_ids[:-3]), *axes])

    def _counted(self, position_ids: Tensor, highest: Tensor) -> Tensor:
        B, S = self.shape
        T = self.tokens.shape[1]
        pos = position_ids.expand(B, T)
        following = torch.cat([pos, pos[:, -1:] + 1], 1)  # (B, T + 1) the last entry: the token to come
        # What follows an image may be padding with a position of its own, so count on from the image instead.
        at = self.textual_at[:, None]
        counted_on = highest.expand(B, T).gather(1, (at - 1).clamp(min=0)) + 1
        following = following.scatter(
            1, at, torch.where(self.after_image[:, None], counted_on, following.gather(1, at))
        )

        columns = torch.arange(S, device=pos.device).expand(B, S).contiguous()
        ends = torch.cat([self.tokens, torch.full_like(self.tokens[:, :1], S)], 1)  # (B, T + 1)
        owner = torch.searchsorted(ends, columns)  # the caller's column that each slot precedes
        slots = (following + self.before).gather(1, owner) - (ends.gather(1, owner) - columns)
        return slots.clamp(min=0).to(pos.dtype).scatter(1, self.tokens, pos + self.before[:, :T])

    def strip(self, hidden: Tensor) -> Tensor:
        """(B, S, D) -> (B, T, D): the caller's columns only."""
        return hidden.gather(1, _wide(self.tokens.to(hidden.device), hidden))

    def hide_textual(self, mask: Tensor | None) -> Tensor:
        """(B, S) the mask with the textual slots hidden too."""
        mask = torch.ones(self.shape, dtype=torch.long, device=self.tokens.device) if mask is None else mask
        return mask.scatter(1, self.textual, 0)

    def segments(self, is_image: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, S) PAD, TEXTUAL, VISUAL, IMAGE or TEXT for every column."""
        kinds = torch.where(is_image, IMAGE, TEXT)
        out = torch.where(self.visual, VISUAL, PAD).scatter(1, self.tokens, kinds).scatter(1, self.textual, TEXTUAL)
        mask = self.mask(attention_mask)
        return out if mask is None else out.masked_fill(mask == 0, PAD)


def insert_slots(
    is_image: Tensor,
    images: list[range],
    lengths: list[int],
    num_textual: int,
    num_visual: int,
    position: str,
    attention_mask: Tensor | None,
) -> Layout:
    """Make room for `num_textual` slots a row and `num_visual` an image.

    Args:
        is_image: (B, T) bool, the placeholders.
        images: the images of each row, see `images_by_row`.
        lengths: placeholders an image.
        position: "first": before the row's first visible token; "before_instruction": after its last placeholder.
        attention_mask: (B, T) or None.
    """
    B, T = is_image.shape
    device = is_image.device
    visual = torch.zeros(B, T + 1, dtype=torch.long, device=device)
    if num_visual and lengths:
        rows, columns = is_image.nonzero(as_tuple=True)
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).to(device)
        visual[rows[starts], columns[starts]] = num_visual

    first = torch.zeros(B, dtype=torch.long, device=device)
    if attention_mask is not None:
        first = (attention_mask != 0).int().argmax(1)
    after_image = torch.zeros(B, dtype=torch.bool, device=device)
    if position == "before_instruction":
        after_image = is_image.any(1)
    at = torch.where(after_image, T - is_image.flip(1).int().argmax(1), first)

    inserted = visual.scatter_add(1, at[:, None], torch.full_like(at[:, None], num_textual))
    before = inserted.cumsum(1)
    totals = [num_textual + num_visual * len(r) for r in images]
    widest = max(totals)
    even = min(totals) == widest
    padding = widest - before[:, -1:]  # (B, 1)

    tokens = torch.arange(T, device=device) + before[:, :T] + padding
    start = padding + at[:, None] + (before - inserted).gather(1, at[:, None])
    textual = start + torch.arange(num_textual, device=device)
    pad = None if even else torch.arange(T + widest, device=device) < padding
    slots = torch.ones(B, T + widest, dtype=torch.bool, device=device)
    slots = slots.scatter(1, tokens, False).scatter(1, textual, False)
    return Layout(
        tokens=tokens,
        textual=textual,
        visual=slots if even else slots & ~pad,
        pad=pad,
        before=before,
        textual_at=at,
        after_image=after_image,
    )


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])
