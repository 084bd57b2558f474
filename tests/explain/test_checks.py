"""Curves against areas known by hand; effects of prompts and of tuning against one question at a time."""

import helpers
import pytest
import torch
from helpers import score
from helpers import tuned_backbone as tuned

import mmpt
from mmpt.errors import InputError
from mmpt.explain.checks import Curve, compare, curves, prompt_effects
from mmpt.explain.interventions import baseline_pixels, replace_patches, without
from mmpt.explain.targets import Case, Target
from mmpt.mpt4lm.backbone import load
from mmpt.scenes import make_scene

QUESTION, TARGET = "How many?", Target("two")


def picture(seed=0):
    return make_scene(seed, 64).image


class ByPatch(Case):
    """f = log of the share of the patches' worth that is there, in the model's place; counts the rows it scores."""

    def __init__(self, worth, target=TARGET):
        super().__init__(tuned(), picture(), QUESTION, target)
        self.pixels, self.worth, self.scored = torch.rand_like(self.pixels), worth, 0

    def __call__(self, patch):
        self.scored += len(patch)
        same = (patch == self.pixels).all(1).unfold(1, 8, 8).unfold(2, 8, 8).all(-1).all(-1)
        return ((same * self.worth).sum((1, 2)) / self.worth.sum() + 1e-9).log()


def test_one_patch_that_is_everything():
    """Right map: gone at once, there at once. Wrong map: at the end."""
    worth = torch.zeros(4, 4)
    worth[2, 1] = 1
    found = curves(ByPatch(worth), worth, steps=16, orders=40)
    assert found.deletion.shares.tolist() == [k / 16 for k in range(17)] and found.metric == "probability"
    assert found.deletion.values.tolist() == pytest.approx([1] + [0] * 16, abs=1e-6)
    assert found.insertion.values.tolist() == pytest.approx([0] + [1] * 16, abs=1e-6)
    assert found.deletion.area == pytest.approx(1 / 32, abs=1e-6)
    assert found.insertion.area == pytest.approx(31 / 32, abs=1e-6)
    assert found.deletion.beaten >= 0.8 and found.insertion.beaten >= 0.8 and found.target == TARGET.words()
    wrong = curves(ByPatch(worth), -worth, steps=16, orders=40)
    assert wrong.deletion.area == pytest.approx(31 / 32, abs=1e-6) and wrong.insertion.area < 0.05
    assert wrong.deletion.beaten <= 0.2 and wrong.insertion.beaten <= 0.2


def test_a_map_that_means_nothing_is_no_better_than_chance():
    worth = torch.ones(4, 4)  # every order has the same curve, a straight line
    found = curves(ByPatch(worth), torch.randn(4, 4), orders=5)
    for curve in (found.deletion, found.insertion):
        assert curve.chance == pytest.approx((0.5, 0), abs=0.01) and curve.area == pytest.approx(curve.chance[0])
        assert curve.beaten == 0 and curve.random.shape == (5, 11)


def test_chance_is_the_mean_over_orders():
    worth = torch.rand(4, 4)
    found = curves(ByPatch(worth), worth, steps=16, orders=200)
    mean, spread = found.deletion.chance
    assert mean == pytest.approx(0.5, abs=4 * spread / 200**0.5)
    assert spread == pytest.approx(found.deletion.random_areas.std().item()) and spread > 0.01
    assert curves(ByPatch(worth), worth, seed=1).deletion.chance != curves(ByPatch(worth), worth).deletion.chance


def test_nothing_is_scored_twice():
    """A random insertion is a deletion in reverse, and all orders share their ends."""
    case = ByPatch(torch.rand(4, 4))
    curves(case, case.worth, steps=8, orders=3)
    assert 30 < case.scored <= 2 + 7 * (2 + 3)  # of 2 · 4 · 9; orders may meet by chance


def test_metrics():
    worth = torch.rand(4, 4) + 1
    probability = curves(ByPatch(worth), worth).deletion.values
    logs = curves(ByPatch(worth), worth, metric="log-probability").deletion.values
    torch.testing.assert_close(probability, logs.exp())
    difference = curves(ByPatch(worth, Target("two", other="one")), worth)
    assert difference.metric == "difference of log-probabilities"
    torch.testing.assert_close(difference.deletion.values, logs)


def test_ties_beat_nobody():
    shares, line = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    for low in (True, False):
        curve = Curve(shares, line, torch.stack([line, line + 1, line - 1]), low)
        assert curve.beaten == pytest.approx(1 / 3) and curve.chance == (0.5, 1.0)


def test_curves_of_the_model_are_pictures_with_patches_gone():
    case = Case(tuned(), picture(), QUESTION, TARGET)
    values = torch.randn(4, 4)
    found = curves(case, values, steps=4, orders=2, metric="log-probability", baseline="blur")
    keep = (values < values.flatten().sort(descending=True).values[3]).float()  # the first four are gone
    blank = baseline_pixels(case.pixels, "blur", 8)
    with torch.no_grad():
        gone = case(replace_patches(case.pixels, keep[None], blank, 8)).item()
        there = case(replace_patches(case.pixels, 1 - keep[None], blank, 8)).item()
        ends = case().item(), case(blank).item()
    expected = [*ends[:1], gone], [*ends[1:], there]
    for curve, (first, second) in zip((found.deletion, found.insertion), expected):
        assert curve.values[:2].tolist() == pytest.approx([first, second], abs=2e-5)
    assert found.deletion.values[-1].item() == pytest.approx(ends[1], abs=2e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(patches=torch.ones(4, 3)), r"shape \(4, 3\), but the picture has patches \(4, 4\)"),
        (dict(metric="logit"), "no metric 'logit'; choose one of probability, log-probability"),
        (dict(orders=1), "orders=1"),
        (dict(baseline="black"), "no baseline 'black'"),
    ],
)
def test_impossible_checks_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        curves(ByPatch(torch.ones(4, 4)), **({"patches": torch.ones(4, 4)} | options))


@pytest.mark.parametrize("fields", ({}, dict(textual_position="before_instruction", textual_update="carry")))
def test_the_effect_of_every_prompt_is_that_of_switching_it_off(fields):
    backbone = tuned(**fields)
    for block in backbone.model.base_model.layer.backbone.textual_blocks:
        block.self_attn.o_proj.weight.data *= 3  # so that answers hang on more than the token before
    case = Case(backbone, picture(), QUESTION, TARGET)
    found = prompt_effects(case, max_new_tokens=4)
    whole = score(backbone, [picture()], [QUESTION], [TARGET])
    assert found.score == pytest.approx(whole.item(), abs=1e-4)
    assert found.answer == backbone.answer([picture()], [QUESTION], 4)[0]
    for kind, P in (("textual", 3), ("visual", 2)):
        assert len(found.effects[kind]) == len(found.answers[kind]) == P
        for i in range(P):
            with without(backbone, **{kind: [i]}):
                off = score(backbone, [picture()], [QUESTION], [TARGET])
                assert found.answers[kind][i] == backbone.answer([picture()], [QUESTION], 4)[0]
            assert found.effects[kind][i].item() == pytest.approx((whole - off).item(), abs=2e-4)
            assert found.changed[kind][i] == (found.answers[kind][i] != found.answer)
    assert len({*found.answers["textual"], *found.answers["visual"]}) > 1  # else the answers above would show little


def test_before_and_after_tuning():
    backbone = tuned()
    backbone.model.get_output_embeddings().weight.data[2] *= 3  # so that some answers end
    found = compare(backbone, picture(), QUESTION, runners=2, max_new_tokens=3)
    assert found.adapters == [None, "default"] and found.scores.shape == (2, len(found.answers))
    assert len(set(found.answers)) == len(found.answers) >= 3 and {*found.greedy} <= {*found.answers}
    assert found.scores[1].tolist() == sorted(found.scores[1].tolist(), reverse=True)
    for row, adapter in enumerate(found.adapters):
        with backbone.use(adapter):
            assert found.greedy[row] == backbone.answer([picture()], [QUESTION], 3)[0]
            for text, value in zip(found.answers, found.scores[row]):
                assert Case(backbone, picture(), QUESTION, Target(text))().item() == pytest.approx(
                    value.item(), abs=5e-5
                )
    assert (found.scores[0] - found.scores[1]).abs().max() > 1e-3
    told = compare(backbone, picture(), QUESTION, greedy=["this was said", "and that"], runners=0)
    assert told.greedy == ["this was said", "and that"] and {*told.answers} == {*told.greedy}
    torch.testing.assert_close(found.probabilities, found.scores.exp())
    assert backbone.model.active_adapter == "default"


def test_runners_up_behind_an_encoder_are_whole():
    backbone, image = load("tiny-t5"), make_scene(3).image
    question = "What is the leftmost object?"
    found = compare(backbone, image, question, runners=3)
    beams = backbone.model.generate(
        **backbone.inputs([image], [question]), num_beams=4, num_return_sequences=4, max_new_tokens=32
    )
    texts = backbone.processor.batch_decode(beams, skip_special_tokens=True)
    assert len(set(texts)) > 2 and {text.strip() for text in texts} <= {*found.answers}


def test_runners_up_that_do_not_end_are_left_out():
    found = compare(tuned(), picture(), QUESTION, runners=2, max_new_tokens=1)  # with one token, the end is all
    assert {*found.answers} <= {*found.greedy, ""}


def test_without_adapters():
    backbone = helpers.tiny_backbone()
    found = compare(backbone, picture(), QUESTION, runners=0, max_new_tokens=3)
    assert found.adapters == [None] and found.answers == found.greedy
    with pytest.raises(InputError, match="no prompts to switch off"):
        prompt_effects(Case(backbone, picture(), QUESTION, TARGET))
    with pytest.raises(InputError, match="'other' is not loaded"):
        compare(tuned(), picture(), QUESTION, [None, "other"])


def test_the_model_is_left_as_it_was():
    backbone = tuned()
    backbone.model.add_adapter("second", mmpt.M2PTConfig(num_textual_prompts=1, num_visual_prompts=1))
    backbone.model.set_adapter("second")
    case = Case(backbone, picture(), QUESTION, TARGET)
    before = case()
    backbone.model.train()

    def state():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in backbone.model.modules()]
        grads = [p.requires_grad for p in backbone.model.parameters()]
        return hooks, grads, torch.is_grad_enabled(), backbone.model.active_adapter

    was = state()
    runs = (
        lambda: curves(case, torch.randn(4, 4), steps=2, orders=2),
        lambda: prompt_effects(case, max_new_tokens=2),
        lambda: compare(backbone, picture(), QUESTION, [None, "default"], runners=1, max_new_tokens=2),
    )
    for run in runs:
        run()
        assert state() == was
    head, calls = backbone.model.get_base_model().lm_head, []

    def fail(*args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("on the way")

    for run in runs:
        calls.clear()
        handle = head.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="on the way"):
            run()
        handle.remove()
        assert state() == was
    assert torch.equal(case(), before)
