"""What the projector is to write for the LLM: a picture's content as a vector on every patch, from the ground truth.

Notation: B pictures, N patches, D width of the LLM, W words.
"""

import torch
from torch import nn

from mmpt.tiny.vision import BACKGROUND_WORDS, GRID, LABELS, PATCH_SIZE, PLACE_WORDS

KINDS = ("small", "large", "digit", "sign")
WRITABLE = LABELS + PLACE_WORDS + KINDS + BACKGROUND_WORDS
GROUND = len(WRITABLE) - len(BACKGROUND_WORDS)  # the first of the words that say "nothing stands here"


def written_words(scene) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture as words on its grid: (N,) indices into `WRITABLE`, (N,) which thing's name a patch bears, or −1.

    Each thing is written once, in the row of patches that holds its centre: its size (or "digit", "sign"), its name,
    its place, side by side, as a text would say it. All other patches have the background's colour. An LLM copies what
    follows a word in its context, so it can read this almost without having learnt to.
    """
    words = torch.full((GRID, GRID), WRITABLE.index(scene.background, GROUND))
    ranks = torch.full((GRID, GRID), -1)
    cells = []
    for rank, thing in enumerate(scene.things):
        x, y = thing.centre
        row, column = int(y / PATCH_SIZE), min(max(int(x / PATCH_SIZE), 1), GRID - 2)
        place = len(LABELS) + PLACE_WORDS.index(thing.place)
        cells += [(0, row, column - 1, WRITABLE.index(_kind(thing)), -1), (1, row, column + 1, place, -1)]
        cells.append((2, row, column, LABELS.index(thing.name), rank))
    for _, row, column, word, rank in sorted(cells):  # where things meet, names go over places and places over sizes
        words[row, column], ranks[row, column] = word, rank
    return words.flatten(), ranks.flatten()


def _kind(thing):
    return thing.group if thing.group in KINDS else thing.size


class PictureCode(nn.Module):
    """Vectors that stand for a picture whose content is known, learned so that the frozen LLM can describe it.

    A patch's vector is its word's, which starts from the LLM's embedding of that word, plus one for where the patch
    is; on a name's patch plus the thing's rank in reading order, kind and place (a neighbour may hide the words beside
    it); on the ground plus the number of objects.
    """

    def __init__(self, embeddings: torch.Tensor):
        """`embeddings` (W, D): the LLM's of `WRITABLE`."""
        super().__init__()
        width = embeddings.shape[1]
        self.embeddings = nn.Parameter(embeddings.clone())
        self.turn = nn.Parameter(torch.zeros(width, width))  # what all words share; rare ones gain by it
        self.patches = nn.Parameter(torch.zeros(GRID * GRID, width))
        self.ranks = nn.Parameter(torch.zeros(7, width))
        self.kinds = nn.Parameter(torch.zeros(len(KINDS), width))
        self.places = nn.Parameter(torch.zeros(len(PLACE_WORDS), width))
        self.counts = nn.Parameter(torch.zeros(5, width))

    def words(self) -> torch.Tensor:
        """(W, D) the words' vectors."""
        return self.embeddings + self.embeddings @ self.turn

    def forward(self, scenes) -> tuple[torch.Tensor, torch.Tensor]:
        """B scenes → (B, N) words on the patches, (B, N, D) what is added to the words' vectors."""
        words, added = zip(*map(self._scene, scenes))
        return torch.stack(words), torch.stack(added)

    def _scene(self, scene):
        words, ranks = written_words(scene)
        kinds = [KINDS.index(_kind(t)) for t in scene.things]
        places = [PLACE_WORDS.index(t.place) for t in scene.things]
        things = self.ranks[: len(kinds)] + self.kinds[kinds] + self.places[places]
        things = torch.cat([things, torch.zeros_like(things[:1])])  # rank −1: no name
        ground = (words >= GROUND)[:, None] * self.counts[len(scene.objects) - 1]
        return words, self.patches + things[ranks] + ground
