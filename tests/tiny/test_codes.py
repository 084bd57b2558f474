import torch

from mmpt.scenes import make_scene
from mmpt.tiny.codes import GROUND, KINDS, WRITABLE, PictureCode, written_words
from mmpt.tiny.vision import GRID, LABELS, PATCH_SIZE, PLACE_WORDS


def test_a_name_stands_on_the_patch_of_its_centre_between_its_kind_and_its_place():
    complete = 0
    for seed in range(60):
        scene = make_scene(seed, text=0.5)
        words, ranks = (grid.view(GRID, GRID) for grid in written_words(scene))
        beside = set()
        for row, column in (ranks >= 0).nonzero().tolist():
            thing = scene.things[ranks[row, column]]
            assert WRITABLE[words[row, column]] == thing.name
            assert row == int(thing.centre[1] // PATCH_SIZE) and abs(column - thing.centre[0] // PATCH_SIZE) <= 1
            kind = thing.group if thing.group in ("digit", "sign") else thing.size
            complete += WRITABLE[words[row, column - 1]] == kind and WRITABLE[words[row, column + 1]] == thing.place
            beside |= {(row, column - 1), (row, column), (row, column + 1)}
        for row in range(GRID):
            for column in range(GRID):
                if (row, column) not in beside:
                    assert words[row, column] >= GROUND and WRITABLE[words[row, column]] == scene.background
    assert complete > 60


def test_the_code_starts_from_the_embeddings_and_adds_what_is_true_of_a_thing():
    embeddings = torch.randn(len(WRITABLE), 8, generator=torch.Generator().manual_seed(0))
    code, scenes = PictureCode(embeddings), [make_scene(1), make_scene(2)]
    words, added = code(scenes)
    assert words.shape == (2, GRID * GRID) and added.shape == (2, GRID * GRID, 8)
    assert torch.equal(code.words(), embeddings) and not added.any()
    with torch.no_grad():
        for parameter in code.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    words, added = code(scenes)
    for scene, row, extra in zip(scenes, words, added):
        _, ranks = written_words(scene)
        for patch in range(GRID * GRID):
            expected = code.patches[patch].clone()
            if row[patch] < len(LABELS):
                thing = scene.things[ranks[patch]]
                kind = thing.group if thing.group in KINDS else thing.size
                expected += code.ranks[ranks[patch]] + code.kinds[KINDS.index(kind)]
                expected += code.places[PLACE_WORDS.index(thing.place)]
            if row[patch] >= GROUND:
                expected += code.counts[len(scene.objects) - 1]
            torch.testing.assert_close(extra[patch], expected)
