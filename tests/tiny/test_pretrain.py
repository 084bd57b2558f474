import torch

from mmpt.scenes import make_scene
from mmpt.tiny.pretrain import SceneBatches, answer_loss, description_inputs


def test_the_loss_is_the_models_own(tiny):
    inputs = description_inputs(tiny, [make_scene(1), make_scene(2)])
    labels = inputs.pop("labels")
    with torch.no_grad():
        expected = tiny.model(**inputs, labels=labels).loss
        found = answer_loss(tiny.model, tiny.model.model(**inputs, use_cache=False).last_hidden_state, labels)
    torch.testing.assert_close(found, expected)


def test_a_run_that_starts_later_sees_the_same_batches():
    whole = [[s.seed for s in scenes] for scenes, _ in SceneBatches(0, 20, 2, 0)]
    assert len(whole) == 20 and len({seed for seeds in whole for seed in seeds}) == 40
    assert [[s.seed for s in scenes] for scenes, _ in SceneBatches(17, 20, 2, 0)] == whole[17:]
