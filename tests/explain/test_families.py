"""The views on hosts whose LLM reads a picture in another way than LLaVA's: the same definitions, the same numbers."""

import pytest
import torch
from peft import get_peft_model
from tiny_hosts import backbone_of

import mmpt
from mmpt.errors import InputError
from mmpt.explain.attention import attention, vision_attention
from mmpt.explain.checks import prompt_effects
from mmpt.explain.gradients import integrated_gradients
from mmpt.explain.interaction import scores
from mmpt.explain.interventions import without
from mmpt.explain.perturbations import occlusion
from mmpt.explain.segments import cells, encode, segments
from mmpt.explain.targets import Case, Target, token_log_probabilities
from mmpt.m2pt.backbone import find_backbone
from mmpt.scenes import make_scene

FAMILIES = ("idefics3", "gemma3", "smolvlm", "internvl")
IMAGE, QUESTION, ANSWER = make_scene(0).image, "a or b?", "b"


def tuned(family, **fields):
    backbone = backbone_of(family)
    backbone.processor.image_processor.do_image_splitting = False
    backbone.processor.image_processor.max_patches = 1  # InternVL's name for the same
    torch.manual_seed(1)
    for parameter in find_backbone(backbone.model).projector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # Gemma 3's begins at zero
    config = dict(num_textual_prompts=3, num_visual_prompts=2, init="normal", init_std=1.0) | fields
    backbone.model = get_peft_model(backbone.model, mmpt.M2PTConfig(**config)).eval()
    return backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_every_position_holds_what_it_is_said_to_hold(family):
    backbone = tuned(family)
    batch, found = encode(backbone, IMAGE, QUESTION, ANSWER), segments(backbone, IMAGE, QUESTION, ANSWER)
    host, seen = find_backbone(backbone.model), []
    handle = host.textual_blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0][0]))
    with torch.no_grad():
        backbone.model(**{k: v for k, v in batch.items() if k != "labels"})
        case = Case(backbone, IMAGE, QUESTION, Target(ANSWER))
        features = host.host.get_image_features(**case.picture_inputs(case.pixels)).pooler_output[0]
    handle.remove()
    assert found.grid == (2, 2) and cells(backbone, batch) == ((2, 2), 16) and len(found) == len(seen[0])
    in_llm = torch.cat([found.where("visual"), found.where("patch")])
    torch.testing.assert_close(seen[0][in_llm], features)
    question = [found.labels[i] for i in found.where("question")]
    assert "".join(question) == QUESTION and case.words == question
    assert [found.labels[i] for i in found.where("answer")][0] == ANSWER and len(found.where("textual")) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_a_distribution_over_the_positions(family):
    backbone = tuned(family)
    for found in (attention(backbone, IMAGE, QUESTION, ANSWER), vision_attention(backbone, IMAGE)):
        T = len(found.segments)
        assert found.weights.shape[-2:] == (T, T)
        torch.testing.assert_close(found.weights[-1].sum(-1), torch.ones_like(found.weights[-1, :, 0]).expand(-1, T))
    assert found.segments.grid == (4, 4)  # in the tower, before its patches become tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_case_scores_as_the_model_does(family):
    backbone = tuned(family)
    case = Case(backbone, IMAGE, QUESTION, Target(ANSWER))
    expected = token_log_probabilities(backbone, [IMAGE], [QUESTION], [ANSWER])[0].sum()
    with torch.no_grad():
        torch.testing.assert_close(case()[0], expected)
        torch.testing.assert_close(case(question=case.embeddings, patch=case.pixels)[0], expected)
        found = scores(case)
        for i, j in ((0, 0), (0, 2), (3, 0), (2, 1)):
            with without(backbone, textual=[i - 1] if i else [], visual=[j - 1] if j else []):
                torch.testing.assert_close(found[i, j], case()[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_a_picture(family):
    case = Case(tuned(family), IMAGE, QUESTION, Target(ANSWER))
    blank = case.pixels.clone()
    blank[..., :16, 16:] = case.pixels.mean((2, 3))[..., None, None]
    with torch.no_grad():
        fall = (case() - case(patch=blank))[0]
    assert abs(fall) > 1e-3
    torch.testing.assert_close(occlusion(case, window=1).patches[0, 1], fall.cpu(), atol=1e-4, rtol=1e-3)
    found = integrated_gradients(case, ["patch", "question", "textual", "visual"], steps=64)
    assert found.patches.shape == (2, 2) and abs(found.gap) < 0.05 * abs(found.score - found.base)


def test_prompts_are_switched_off_past_a_sliding_window():
    backbone = tuned("gemma3")
    case = Case(backbone, IMAGE, QUESTION, Target(ANSWER))
    found = prompt_effects(case, max_new_tokens=6)
    with torch.no_grad():
        for i in range(3):
            with without(backbone, textual=[i]):
                assert found.answers["textual"][i] == backbone.answer([IMAGE], [QUESTION], 6)[0]
    assert len(found.answers["visual"]) == 2


def test_several_crops_are_refused_with_the_remedy():
    backbone = backbone_of("idefics3")
    with pytest.raises(InputError, match="the processor made 5 crops of it; set do_image_splitting or do_pan_and"):
        segments(backbone, IMAGE, QUESTION)
