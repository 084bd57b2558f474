"""Switched-off prompts against adapters that never had them, and strengths against copies of a prompt."""

import helpers
import pytest
import torch
from peft import get_peft_model

import mmpt
from mmpt.errors import InputError
from mmpt.explain.interventions import (
    BASELINES,
    baseline_pixels,
    patch_mask,
    prompt_rows,
    prompt_strength,
    replace_patches,
    without,
)
from mmpt.scenes import make_scene

FIRST, AFTER = dict(textual_position="first"), dict(textual_position="before_instruction")


def tuned(**fields):
    """A random LLaVA with prompts of the size of its hidden states, so that no mistake stays small."""
    torch.manual_seed(1)
    backbone = helpers.tiny_backbone()
    config = mmpt.M2PTConfig(**{"num_textual_prompts": 3, "num_visual_prompts": 2, "tune_projector": False} | fields)
    backbone.model = get_peft_model(backbone.model, config).eval()
    for container in sides(backbone):
        for prompt in container["default"].values() if "default" in container else ():
            torch.nn.init.normal_(prompt)
    return backbone


def sides(backbone):
    layer = backbone.model.base_model.layer
    return layer.m2pt_textual_prompts, layer.m2pt_visual_prompts


def smaller(backbone, textual=slice(None), visual=slice(None), **fields):
    """An adapter with some of the prompts only."""
    counts = [len(next(iter(c["default"].values()))[k]) for c, k in zip(sides(backbone), (textual, visual))]
    other = tuned(num_textual_prompts=counts[0], num_visual_prompts=counts[1], **fields)
    for mine, theirs, keep in zip(sides(other), sides(backbone), (textual, visual)):
        for name, prompt in mine["default"].items():
            prompt.data = theirs["default"][name].data[keep].clone()
    return other


@torch.no_grad()
def logits(backbone, rows=1, moved=None, **options):
    """(rows, T, V) on one question and `rows` pictures; with `moved`, columns from there stand one place later."""
    batch = backbone.inputs([make_scene(i, 64).image for i in range(rows)], ["How many animals are there?"] * rows)
    if moved is not None:
        T = batch["input_ids"].shape[1]
        options["position_ids"] = (torch.arange(T) + (torch.arange(T) >= moved))[None]
    return backbone.model(**batch, **options).logits


def image_columns(backbone):
    ids = backbone.inputs([make_scene(0, 64).image], ["How many animals are there?"])["input_ids"][0]
    found = (ids == backbone.processor.image_token_id).nonzero()[:, 0]
    return found[0].item(), found[-1].item() + 1


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("update", ("replace", "carry"))
def test_without_its_first_textual_prompt_a_model_is_one_that_never_had_it(update):
    backbone = tuned(textual_update=update, **FIRST)
    with without(backbone, textual=[0]):
        close(logits(backbone), logits(smaller(backbone, textual=slice(1, None), textual_update=update, **FIRST)))


@pytest.mark.parametrize("update", ("replace", "carry"))
def test_without_its_last_textual_prompt_after_the_picture(update):
    backbone = tuned(textual_update=update, **AFTER)
    other = smaller(backbone, textual=slice(0, -1), textual_update=update, **AFTER)
    _, end = image_columns(backbone)
    with without(backbone, textual=[2]):
        close(logits(backbone), logits(other, moved=end))  # every position where it was


def test_without_any_textual_prompts_it_is_the_base_model():
    backbone = tuned(num_visual_prompts=0, **FIRST)
    with without(backbone, textual=[0, 1, 2]), torch.no_grad():
        off = logits(backbone)
    with backbone.model.disable_adapter():
        close(off, logits(backbone))


@pytest.mark.parametrize("fields", (FIRST, AFTER, FIRST | {"visual_readout": "parameter"}))
def test_without_its_first_visual_prompt(fields):
    backbone = tuned(**fields)
    start, _ = image_columns(backbone)
    with without(backbone, visual=[0]):
        close(logits(backbone), logits(smaller(backbone, visual=slice(1, None), **fields), moved=start))


def test_in_training_mode_there_is_nothing_to_switch_off():
    backbone = tuned(**FIRST)
    backbone.model.train()
    for kind in ("textual", "visual"):
        with pytest.raises(ValueError, match=r"may have none in training mode: call model.eval\(\)"):
            with without(backbone, **{kind: [0]}):
                logits(backbone)


def test_without_its_only_prompt_a_visual_one_it_is_the_base_model():
    backbone = tuned(num_textual_prompts=0, num_visual_prompts=1)
    with without(backbone, visual=[0]):
        off = logits(backbone)
    with backbone.model.disable_adapter():
        close(off, logits(backbone, moved=image_columns(backbone)[0]))


def test_the_strength_of_a_visual_prompt_counts_its_copies():
    backbone = tuned(visual_readout="none")
    twice = smaller(backbone, visual=[0, 1, 1], visual_readout="none")
    with prompt_strength(backbone, visual=torch.tensor([1.0, 2.0])):
        close(logits(backbone), logits(twice))
    assert (logits(backbone) - logits(twice)).abs().max() > 1e-3


def test_places_of_one_kind_are_switched_one_by_one():
    """In the last vision layer alone, and where the LLM reads them alone; both and the other layer: everywhere."""
    backbone = tuned()
    names, P = prompt_rows(backbone)["visual"]
    assert names == ["vision layer 1", "vision layer 2", "LLM"] and P == 2
    assert prompt_rows(backbone)["textual"] == (["LLM layer 1", "LLM layer 2"], 3)
    each = []
    for place in range(3):
        with without(backbone, visual=[1], place=place):
            each.append(logits(backbone))
    for other in (logits(backbone), *each[1:]):
        assert (each[0] - other).abs().max() > 1e-4
    strength = torch.ones(1, 3, 2)
    strength[..., 1] = 0
    with prompt_strength(backbone, visual=strength), torch.no_grad():
        all_places = logits(backbone)
    with without(backbone, visual=[1]):
        assert torch.equal(all_places, logits(backbone))
    strength = torch.ones(1, 2, 3)
    strength[:, 1, 0] = 0
    with prompt_strength(backbone, textual=strength), torch.no_grad():
        upper = logits(backbone)
    with without(backbone, textual=[0], place=1):
        assert torch.equal(upper, logits(backbone))
    with without(backbone, textual=[0]):
        assert (upper - logits(backbone)).abs().max() > 1e-4


@pytest.mark.parametrize("fields", (FIRST, AFTER | {"textual_update": "carry"}, {"textual_layers": "last"}))
@pytest.mark.parametrize("attention", ("eager", "sdpa"))
def test_every_row_of_a_batch_has_prompts_of_its_own(fields, attention):
    backbone = tuned(**fields)
    backbone.model.get_base_model().set_attn_implementation(attention)
    textual = torch.tensor([[1, 1, 1.0], [0, 1, 1], [1, 0.5, 0], [0, 0, 0]])
    visual = torch.tensor([[1, 1.0], [1, 0], [0, 0], [2, 1]])
    with prompt_strength(backbone, textual, visual):
        together = logits(backbone, rows=4)
    for i in range(4):
        batch = backbone.inputs([make_scene(i, 64).image], ["How many animals are there?"])
        with prompt_strength(backbone, textual[i], visual[i]), torch.no_grad():
            close(together[i : i + 1], backbone.model(**batch).logits)
    close(together[:1], logits(backbone))


@pytest.mark.parametrize("fields", (FIRST, AFTER | {"textual_update": "carry"}))
def test_generation_keeps_to_it_from_token_to_token(fields):
    """The logits of decoding with a cache, rows of different lengths, are those of teacher forcing without one."""
    backbone = tuned(**fields)
    batch = backbone.inputs([make_scene(i, 64).image for i in range(2)], ["How many?", "What is on the left of it?"])
    textual, visual = torch.tensor([[0, 1, 1.0], [1, 0, 0]]), torch.tensor([[1, 0.0], [0, 1]])
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    with prompt_strength(backbone, textual, visual), torch.no_grad():
        out = backbone.model.generate(**batch, **options, output_logits=True)
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 5)], 1)
        inputs = dict(input_ids=out.sequences, attention_mask=mask, pixel_values=batch["pixel_values"])
        after = backbone.model(**inputs).logits[:, -6:-1]
    close(torch.stack(out.logits, 1), after)
    with torch.no_grad():
        assert (backbone.model(**inputs).logits[:, -6:-1] - after).abs().amax((1, 2)).min() > 1e-3


def test_a_strength_can_be_differentiated():
    backbone = tuned()
    textual = torch.ones(1, 3, requires_grad=True)
    batch = backbone.inputs([make_scene(0, 64).image], ["How many?"])

    def f(textual):
        with prompt_strength(backbone, textual):
            return backbone.model(**batch).logits[0, -1, 7]

    (gradient,) = torch.autograd.grad(f(textual), textual)
    step = torch.tensor([[0, 1e-2, 0]])
    with torch.no_grad():
        slope = (f(textual + step) - f(textual - step)) / 2e-2
    torch.testing.assert_close(gradient[0, 1], slope, atol=2e-3, rtol=2e-2)


def test_nothing_outlives_the_context():
    backbone = tuned()
    before, count = logits(backbone), hooks(backbone.model)
    with pytest.raises(RuntimeError, match="on the way"):
        with without(backbone, textual=[0], visual=[1]):
            assert hooks(backbone.model) > count
            raise RuntimeError("on the way")
    with pytest.raises(ValueError, match="2 rows were given, but the call has 1"):
        with prompt_strength(backbone, torch.ones(2, 3)):
            logits(backbone)
    with pytest.raises(ValueError, match="the adapter is off"):
        with without(backbone, textual=[0]), backbone.model.disable_adapter():
            logits(backbone)
    assert hooks(backbone.model) == count
    assert torch.equal(logits(backbone), before)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(textual=torch.ones(4)), r"textual prompts have the shape \(4,\); give \(3,\), \(rows, 3\) or"),
        (dict(visual=torch.ones(1, 2, 2)), r"\(rows, 3, 2\)"),
        (dict(textual=torch.tensor([1, -0.5, 1])), "A strength of -0.5 was given"),
    ],
)
def test_strengths_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        with prompt_strength(tuned(), **given):
            pass


def test_prompts_that_are_not_there_are_refused():
    for fields, message in ((dict(textual=[3]), "there are 3"), (dict(visual=[0], place=3), "places 0 to 2")):
        with pytest.raises(InputError, match=message):
            with without(tuned(), **fields):
                pass
    with pytest.raises(InputError, match="no visual prompts"):
        with prompt_strength(tuned(num_visual_prompts=0), visual=torch.ones(2)):
            pass
    with pytest.raises(InputError, match="load an M²PT adapter"):
        with prompt_strength(helpers.tiny_backbone(), torch.ones(3)):
            pass


def test_patches_are_replaced_and_nothing_else():
    pixels = torch.rand(2, 3, 34, 32)  # two rows of pixels belong to no patch
    keep = torch.ones(2, 4, 4)
    keep[0, 1, 2] = 0
    out = replace_patches(pixels, keep, torch.full_like(pixels, 9), 8)
    changed = torch.zeros(2, 3, 34, 32, dtype=torch.bool)
    changed[0, :, 8:16, 16:24] = True
    assert torch.equal(out, torch.where(changed, 9, pixels))
    assert patch_mask(keep, (34, 32), 8).shape == (2, 1, 34, 32)


def test_baselines_say_less_and_less():
    pixels = torch.rand(1, 3, 32, 32)
    grey, mean, blur = (baseline_pixels(pixels, name, 8) for name in ("grey", "mean", "blur"))
    assert not grey.any() and set(BASELINES) == {"grey", "mean", "blur"}
    torch.testing.assert_close(mean[0, :, 3, 5], pixels[0].mean((1, 2)))
    assert mean.std((2, 3)).max() < 1e-6 < blur.std((2, 3)).min() and blur.std() < pixels.std() / 5
    with pytest.raises(InputError, match="'black'; choose one of mean, grey, blur"):
        baseline_pixels(pixels, "black", 8)
