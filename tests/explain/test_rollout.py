"""Rollout against the product of matrices written out, with slots that are overwritten."""

import helpers
import pytest
import torch
from peft import get_peft_model

import mmpt
from mmpt.explain.attention import Attention, attention, vision_attention
from mmpt.explain.rollout import rollout
from mmpt.explain.segments import Segments
from mmpt.scenes import make_scene

IMAGE = make_scene(0, 64).image


def forward_product(attention, start):
    """A_L … A_start, the rows of slots starting afresh wherever a layer overwrites them."""
    T = len(attention.segments)
    slots = attention.segments.where(attention.segments.slots).tolist()
    flow = torch.eye(T)
    for layer in range(start, len(attention.weights)):
        if layer in attention.segments.written:
            for i in slots:
                flow[i] = torch.eye(T)[i]
        mixing = (attention.weights[layer].mean(0) + torch.eye(T)) / 2
        for i in range(T):
            mixing[i] /= mixing[i].sum()
        flow = mixing @ flow
    return flow


@pytest.mark.parametrize(
    "fields",
    [
        dict(),
        dict(textual_update="carry", visual_update="carry"),
        dict(textual_position="before_instruction"),
        dict(textual_position="before_instruction", textual_layers=[1], visual_layers=[1]),
    ],
    ids=str,
)
def test_each_row_is_the_product_of_the_layers_from_there_on(fields):
    backbone = helpers.tiny_backbone()
    config = mmpt.M2PTConfig(num_textual_prompts=3, num_visual_prompts=2, init="normal", init_std=1.0, **fields)
    backbone.model = get_peft_model(backbone.model, config).eval()
    for seen, source in (
        (attention(backbone, IMAGE, "how many?", "two"), "predicting"),
        (attention(backbone, IMAGE, "how many?", "two").without_sinks(0.1), "predicting"),
        (vision_attention(backbone, IMAGE), "patch"),
    ):
        rows = rollout(seen, source)
        for start in range(2):
            expected = forward_product(seen, start)[seen.positions(source)].mean(0)
            torch.testing.assert_close(rows[start], expected)
        torch.testing.assert_close(rows.sum(1), torch.ones(2))


def test_nothing_gets_through_a_slot_that_is_overwritten():
    """The answer looks at the prompt only, and the prompt at the patch only: two layers join them under "carry"."""
    weights = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]]).expand(2, 1, 3, 3)
    kinds = ["patch", "textual", "answer"]
    reached = {}
    for update, written in (("replace", (0, 1)), ("carry", (0,))):
        seen = Attention(weights, Segments(kinds, kinds, [0, None, 1], (1, 1), written=written))
        reached[update] = rollout(seen, "answer")[0].tolist()
    assert reached == {"replace": [0, 0.75, 0.25], "carry": [0.25, 0.5, 0.25]}
