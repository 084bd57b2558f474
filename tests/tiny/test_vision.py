import torch
from transformers import CLIPImageProcessorPil

from mmpt.scenes import make_scene
from mmpt.tiny.optim import Muon, orthogonalise
from mmpt.tiny.vision import GRID, LABELS, PATCH_SIZE, DenseHeads, patch_targets, pixel_values


def test_pixels_equal_the_processor():
    scene = make_scene(3)
    processor = CLIPImageProcessorPil(size={"height": 112, "width": 112}, do_center_crop=False,
                                      image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    expected = processor(scene.image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values([scene.image]), expected)


def test_patch_targets_follow_the_boxes():
    for seed in range(40):
        scene = make_scene(seed)
        targets = patch_targets(scene)
        for patch in range(GRID * GRID):
            top, left = patch // GRID * PATCH_SIZE, patch % GRID * PATCH_SIZE
            shared = []
            for thing in scene.things:
                x, y, w, h = thing.box
                wide = max(0, min(x + w, left + PATCH_SIZE) - max(x, left))
                high = max(0, min(y + h, top + PATCH_SIZE) - max(y, top))
                shared.append(wide * high)
            label = targets["identity"][patch].item()
            if max(shared) >= PATCH_SIZE**2 / 5:
                assert LABELS[label] == scene.things[shared.index(max(shared))].name
            else:
                assert label == len(LABELS) and targets["place"][patch] == -100
        assert targets["count"] == len(scene.objects) - 1


def test_dense_heads_reach_full_marks_on_what_they_can_learn():
    torch.manual_seed(0)
    scenes = [make_scene(i) for i in range(4)]
    targets = torch.utils.data.default_collate([patch_targets(s) for s in scenes])
    heads, patches = DenseHeads(256), torch.randn(4, GRID * GRID, 256)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.02)
    for _ in range(60):
        loss, accuracy = heads(patches, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy["identity"] == 1.0


def test_orthogonalise_keeps_singular_vectors():
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24)):
        x = torch.randn(shape)
        u, _, v = torch.linalg.svd(x, full_matrices=False)
        inner = u.T @ orthogonalise(x) @ v.T
        assert torch.dist(inner, inner.diag().diag()) < 1e-3
        assert 0.6 < inner.diag().min() and inner.diag().max() < 1.3


def test_muon_minimises():
    torch.manual_seed(0)
    target = torch.randn(16, 16)
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([weight], lr=0.05)
    losses = []
    for _ in range(200):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
