"""What is said of order and update, against attention weights and against what cutting the attention changes."""

import re

import helpers
import pytest
import torch
from peft import get_peft_model

import mmpt
from mmpt.explain.attention import attention, capture
from mmpt.explain.order import _words, order
from mmpt.explain.segments import encode, prompt_layer, segments
from mmpt.m2pt.layer import Settings
from mmpt.scenes import make_scene

CONFIGS = [
    dict(textual_position=position, textual_update=update, textual_layers=layers)
    for position in ("first", "before_instruction")
    for update in ("replace", "carry")
    for layers in ("all", [0], [1])
]


def tuned(**fields):
    backbone = helpers.tiny_backbone()
    fields = {"num_textual_prompts": 2, "num_visual_prompts": 3, "init": "normal", "init_std": 1.0} | fields
    backbone.model = get_peft_model(backbone.model, mmpt.M2PTConfig(**fields)).eval()
    return backbone


def logits_without(backbone, batch, source, target, layer):
    """The logits when `source` cannot look at `target` in one layer; with layer None nothing is cut."""
    blocks = prompt_layer(backbone)[0].backbone.textual_blocks

    def cut(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        mask[:, :, source[:, None], target] = torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask}

    with capture([], backbone.model), torch.no_grad():  # for the eager implementation, which takes a mask
        hooks = [] if layer is None else [blocks[layer].self_attn.register_forward_pre_hook(cut, with_kwargs=True)]
        logits = backbone.model(**batch).logits
        for hook in hooks:
            hook.remove()
    return logits


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_what_exists_and_what_counts_is_so(fields):
    backbone, image = tuned(**fields), make_scene(0, 64).image
    seen = attention(backbone, image, "how many?", "two")
    share = seen.share("textual", "visual")  # (L, H)
    assert tuple((share > 0).all(1).nonzero()[:, 0].tolist()) == seen.order.exists
    assert tuple((share > 0).any(1).nonzero()[:, 0].tolist()) == seen.order.exists

    batch, found = encode(backbone, image, "how many?"), segments(backbone, image, "how many?")
    whole = logits_without(backbone, batch, None, None, None)
    for layer in seen.order.exists:
        change = logits_without(backbone, batch, found.where("textual"), found.where("visual"), layer) - whole
        assert (change.abs().max() > 1e-4) == (layer in seen.order.counts)


def settings(textual_layers=tuple(range(30)), **fields):
    return Settings(mmpt.M2PTConfig(**fields), (0, 1), textual_layers, ())


AFTER = dict(textual_position="before_instruction")


@pytest.mark.parametrize(
    "given, said",
    [
        (settings(), "no textual prompt looks at a visual prompt. The other direction exists: .* in layers 1 to 30"),
        (settings(textual_layers=(20, 21)), "look at the textual prompts, in layers 21 to 30"),
        (settings(**AFTER), "overwritten before the next layer reads it, .* nothing of what they see can reach"),
        (settings(**AFTER, textual_update="carry"), "carries .* from layers 1 to 29 it can reach the answer"),
        (settings(**AFTER, textual_layers=(0, 2)), "only what they see in layers 1 and 3 to 29 can reach"),
        (settings(**AFTER, textual_layers=(29,)), "in layer 30, but .* read by none"),
        (settings(visual_readout="parameter"), "raw parameters, the same for every picture"),
        (settings(visual_readout="none"), "act inside the vision tower only"),
        (settings(textual_layers=()), "no textual prompts that could look"),
        (None, "No M²PT adapter is active"),
    ],
)
def test_the_sentence(given, said):
    assert re.search(said, order(given, 30).sentence)


def test_layers_in_words():
    assert [_words(x) for x in ([2], [0, 1], [0, 1, 2, 5], [0, 2, 4, 5])] == [
        "layer 3", "layers 1 and 2", "layers 1 to 3 and 6", "layers 1, 3 and 5 and 6",
    ]  # fmt: skip
