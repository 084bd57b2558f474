"""The matrix against its definition, one call for each combination."""

import helpers
import pytest
import torch
from helpers import tuned_backbone as tuned

from mmpt.errors import InputError
from mmpt.explain.interaction import interaction, scores
from mmpt.explain.interventions import without
from mmpt.explain.targets import Case, Target
from mmpt.scenes import make_scene

FIRST, AFTER = dict(textual_position="first"), dict(textual_position="before_instruction")


def case_of(backbone, target=None):
    return Case(backbone, make_scene(0, 64).image, "How many?", target or Target("two"))


def close(a, b):
    torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


@torch.no_grad()
def literally(case):
    """(I, J) one call each, nothing shared."""
    names = [[], *([i] for i in range(3))], [[], *([j] for j in range(2))]
    out = torch.empty(4, 3)
    for i, textual in enumerate(names[0]):
        for j, visual in enumerate(names[1]):
            with without(case.backbone, textual, visual):
                out[i, j] = case()[0]
    return out


@pytest.mark.parametrize(
    "fields",
    [
        FIRST,
        AFTER,
        FIRST | {"textual_update": "carry"},
        AFTER | {"textual_update": "carry", "visual_update": "carry"},
        FIRST | {"textual_layers": "last"},
        AFTER | {"textual_layers": "last", "visual_layers": "last"},
        FIRST | {"visual_readout": "none"},
        AFTER | {"visual_readout": "parameter", "tune_projector": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", ("eager", "sdpa"))
def test_sharing_changes_nothing(fields, attention):
    backbone = tuned(**fields)
    backbone.model.get_base_model().set_attn_implementation(attention)
    case = case_of(backbone, Target("two", other="a cat"))
    f = literally(case)
    close(scores(case), f)
    found = interaction(case)
    for j in (1, 2):  # what a textual prompt does with visual prompt j, less what it does without; and the other way
        torch.testing.assert_close(
            found.matrix[:, j - 1], (f[0, 0] - f[1:, 0]) - (f[0, j] - f[1:, j]), atol=5e-5, rtol=0
        )
    for i in (1, 2, 3):
        torch.testing.assert_close(found.matrix[i - 1], (f[0, 0] - f[0, 1:]) - (f[i, 0] - f[i, 1:]), atol=5e-5, rtol=0)
    torch.testing.assert_close(found.textual, f[0, 0] - f[1:, 0], atol=5e-5, rtol=0)
    torch.testing.assert_close(found.visual, f[0, 0] - f[0, 1:], atol=5e-5, rtol=0)
    assert found.matrix.shape == (3, 2) and found.matrix.abs().max() > 1e-3
    assert found.score == pytest.approx(f[0, 0].item(), abs=2e-5) and found.target == case.target.words()


def test_one_token_of_the_answer():
    case = case_of(tuned(), Target("two", token=1))
    close(scores(case), literally(case))


def test_inert_prompts_have_no_interaction():
    """Visual prompts whose tower attends to nothing, and that the LLM does not read; textual ones likewise."""
    backbone = tuned(visual_readout="none")
    for block in backbone.model.base_model.layer.backbone.visual_blocks:
        torch.nn.init.zeros_(block.self_attn.out_proj.weight)
    found = interaction(case_of(backbone))
    assert found.matrix.abs().max() < 1e-5 and found.visual.abs().max() < 1e-5 and found.textual.abs().min() > 1e-4
    backbone = tuned(textual_layers="last")
    torch.nn.init.zeros_(backbone.model.base_model.layer.backbone.textual_blocks[1].self_attn.o_proj.weight)
    found = interaction(case_of(backbone))
    assert found.matrix.abs().max() < 1e-5 and found.textual.abs().max() < 1e-5 and found.visual.abs().min() > 1e-4


def test_both_kinds_are_needed():
    for backbone, have in ((helpers.tiny_backbone(), "none"), (tuned(num_visual_prompts=0), "textual ones only")):
        with pytest.raises(InputError, match=f"the active adapter has {have}"):
            interaction(case_of(backbone))


def test_the_model_is_left_as_it_was():
    backbone = tuned(**AFTER, textual_update="carry")
    case = case_of(backbone)
    before = case()
    backbone.model.train()

    def state():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in backbone.model.modules()]
        return hooks, [p.requires_grad for p in backbone.model.parameters()], torch.is_grad_enabled()

    was = state()
    interaction(case)
    assert state() == was and torch.equal(case(), before)
    block = backbone.model.base_model.layer.backbone.textual_blocks[1]
    calls, forward = [], block.forward

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("on the way")
        return forward(*args, **kwargs)

    block.forward = fail
    with pytest.raises(RuntimeError, match="on the way"):
        interaction(case)
    del block.forward
    assert state() == was and torch.equal(case(), before)
