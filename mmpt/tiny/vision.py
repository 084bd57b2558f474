"""The vision half of the embedded model: a small CLIP tower, and what it is taught before it meets the LLM.

Dense objective: from every patch's hidden state, say which thing covers the patch, where that thing's centre is, how
large it is, the background's colour, and how many objects the picture has. Notation: B batch, N patches, D width.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig

from mmpt.scenes import BACKGROUNDS, NAMES, PLACES, WORDS

IMAGE_SIZE, PATCH_SIZE = 112, 16
GRID = IMAGE_SIZE // PATCH_SIZE
MEAN = STD = 0.5
LABELS = NAMES + tuple("0123456789") + WORDS  # what a patch can show; index len(LABELS) is "background only"
PLACE_WORDS = tuple(place for row in PLACES for place in row)
BACKGROUND_WORDS = tuple(BACKGROUNDS)
IGNORE = -100


def vision_config() -> CLIPVisionConfig:
    """Six layers of width 192 on a 7 × 7 grid of patches: 2.8 M parameters."""
    return CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
    )


def pixel_values(images) -> torch.Tensor:
    """PIL pictures of one size → (B, 3, H, W) float in −1 … 1, as the processor makes them."""
    pixels = torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in images])
    width, height = images[0].size
    return pixels.view(len(images), height, width, 3).permute(0, 3, 1, 2).float().div_(255).sub_(MEAN).div_(STD)


def patch_targets(scene) -> dict[str, torch.Tensor]:
    """Targets of one scene: identity, place, size (N,) a patch (`IGNORE` where nothing stands), background, count ().

    A patch belongs to the thing whose box covers most of it, at least a fifth of it.
    """
    edges = torch.arange(GRID) * PATCH_SIZE
    boxes = torch.tensor([t.box for t in scene.things])  # (T, 4)

    def overlap(start, length):  # (T,) → (T, GRID) pixels shared with each row or column of patches
        end = torch.minimum((start + length)[:, None], edges + PATCH_SIZE)
        return (end - torch.maximum(start[:, None], edges)).clamp(min=0)

    shared = overlap(boxes[:, 1], boxes[:, 3])[:, :, None] * overlap(boxes[:, 0], boxes[:, 2])[:, None, :]
    area, owner = shared.flatten(1).max(0)
    covered = area >= PATCH_SIZE**2 / 5

    def at_patches(values, empty=IGNORE):
        return torch.where(covered, torch.tensor(values)[owner], empty)

    return {
        "identity": at_patches([LABELS.index(t.name) for t in scene.things], len(LABELS)),
        "place": at_patches([PLACE_WORDS.index(t.place) for t in scene.things]),
        "size": at_patches([int(t.size == "large") for t in scene.things]),
        "background": torch.tensor(BACKGROUND_WORDS.index(scene.background)),
        "count": torch.tensor(len(scene.objects) - 1),
    }


class DenseHeads(nn.Module):
    """Linear read-outs of every patch's hidden state; thrown away when the tower is trained."""

    sizes = {"identity": len(LABELS) + 1, "place": 9, "size": 2, "background": len(BACKGROUNDS), "count": 5}

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(self.sizes.values()))

    def forward(self, patches, targets):
        """Patches (B, N, D) and targets as `patch_targets` gives them, stacked → mean loss and accuracies."""
        logits = dict(zip(self.sizes, self.linear(self.norm(patches)).split(list(self.sizes.values()), -1)))
        accuracy, loss = {}, 0
        for name, scores in logits.items():
            target = targets[name]
            target = target[:, None].expand(scores.shape[:2]) if target.ndim == 1 else target
            weight = torch.ones(scores.shape[-1])
            if name == "identity":
                weight[-1] = 0.1  # two thirds of the patches show background only
            loss = loss + self.weight(name) * F.cross_entropy(
                scores.flatten(0, 1), target.flatten(), weight, ignore_index=IGNORE
            )
            shown = (target != IGNORE) & (target != len(LABELS))
            accuracy[name] = (scores.argmax(-1) == target)[shown].float().mean().item()
        return loss, accuracy

    @staticmethod
    def weight(name):
        return 1.0 if name == "identity" else 0.2
