"""Attribution against derivations by hand, literal recomputation, and a second implementation."""

import types

import helpers
import numpy as np
import pytest
import torch
from captum.attr import LayerConductance
from helpers import score
from helpers import tuned_backbone as tuned

import mmpt
from mmpt.errors import InputError
from mmpt.explain.attribution import box_mask, patch_index, patch_sums
from mmpt.explain.gradients import _one_argument, conductance, gradient_shap, integrated_gradients
from mmpt.explain.interventions import baseline_pixels, replace_patches, without
from mmpt.explain.perturbations import feature_ablation, occlusion
from mmpt.explain.shapley import shapley
from mmpt.explain.targets import Case, Target
from mmpt.scenes import make_scene

QUESTION, TARGET = "How many?", Target("two", other="a cat")
PARTS = {"textual", "visual", "patch", "question"}
METHODS = {
    "integrated gradients": lambda case: integrated_gradients(case, steps=16),
    "gradient SHAP": lambda case: gradient_shap(case, samples=3),
    "conductance": lambda case: conductance(case, steps=2),
    "occlusion": occlusion,
    "feature ablation": feature_ablation,
    "Shapley": shapley,
    "Shapley sampling": lambda case: shapley(case, samples=2),
}


def case_of(backbone=None, seed=0, target=TARGET):
    return Case(backbone or tuned(), make_scene(seed, 64).image, QUESTION, target)


class Additive(Case):
    """f = Σ weight · part, in the model's place; also with the product of the strengths of V1 and T1 everywhere."""

    def __init__(self, product=0.0):
        super().__init__(tuned(), make_scene(0, 64).image, QUESTION, TARGET)
        self.product = product
        self.weights = {
            "patch": torch.randn_like(self.pixels), "question": torch.randn_like(self.embeddings),
            "textual": torch.randn(1, 2, 3), "visual": torch.randn(1, 3, 2),
        }  # fmt: skip

    def __call__(self, patch=None, question=None, textual=None, visual=None):
        given = dict(patch=patch, question=question, textual=textual, visual=visual)
        whole = {"patch": self.pixels, "question": self.embeddings, "textual": torch.ones(1, 2, 3),
                 "visual": torch.ones(1, 3, 2)}  # fmt: skip
        given = {k: whole[k] if v is None else v for k, v in given.items()}
        both = given["textual"][:, 0, 0] * given["visual"][:, 0, 0]
        return sum((self.weights[k] * v).flatten(1).sum(1) for k, v in given.items()) + self.product * both

    def expected(self, baseline="mean"):
        """weight · (part - baseline): a patch, a token, a prompt at a place."""
        blank = baseline_pixels(self.pixels, baseline, self.patch)
        return {
            "patch": (self.weights["patch"] * (self.pixels - blank)).unfold(2, 8, 8).unfold(3, 8, 8).sum((0, 1, 4, 5)),
            "question": (self.weights["question"] * (self.embeddings - self.nothing)).sum((0, 2)),
            "textual": self.weights["textual"][0],
            "visual": self.weights["visual"][0],
        }


def close(a, b, atol=2e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-3)


def assert_maps(found, expected):
    for name, value in expected.items():
        close(getattr(found, "patches" if name == "patch" else name), value)


# ---- derived by hand -----------------------------------------------------------------------------------------------


def test_integrated_gradients_of_an_additive_function_are_its_terms():
    case = Additive()
    for baseline in ("mean", "blur"):
        found = integrated_gradients(case, baseline=baseline)
        assert_maps(found, case.expected(baseline))
        assert abs(found.gap) < 1e-3
    assert found.places["textual"] == ["LLM layer 1", "LLM layer 2"] and found.words == list(QUESTION)
    assert found.totals.keys() == PARTS
    assert found.totals["patch"] == pytest.approx(found.patches.sum().item())
    assert found.target == TARGET.words() and "switched off" in found.baseline and "blurred" in found.baseline


def test_integrated_gradients_share_a_product_equally():
    case = Additive(product=3.0)
    found, terms = integrated_gradients(case), case.expected()
    for kind in ("textual", "visual"):
        terms[kind][0, 0] += 1.5
    assert_maps(found, terms)


def test_gradient_shap_of_an_additive_function():
    """Pictures: within what the baselines give. Prompts: their weights, all by one random factor around 1."""
    case = Additive()
    found = gradient_shap(case, ("textual", "visual"), samples=400)
    factors = torch.cat([(getattr(found, k) / case.weights[k][0]).flatten() for k in ("textual", "visual")])
    close(factors, factors[:1].expand(12))
    assert factors[0].item() == pytest.approx(1, abs=0.3) and found.patches is None
    assert found.score - found.base == pytest.approx(sum(found.totals.values()) - found.gap, abs=1e-3)
    assert found.gap == pytest.approx((factors[0].item() - 1) * sum(w.sum() for k, w in case.weights.items()
                                      if k in ("textual", "visual")).item(), abs=1e-2)  # fmt: skip
    pictures = torch.stack([case.expected(name)["patch"] for name in ("mean", "grey", "blur")])
    low, high = pictures.amin(0) - 1e-3, pictures.amax(0) + 1e-3
    patches = gradient_shap(case, ["patch"], samples=9)
    assert ((low <= patches.patches) & (patches.patches <= high)).all() and abs(patches.gap) < 1e-3


def test_occlusion_and_ablation_of_an_additive_function():
    case = Additive()
    expected = case.expected()
    found = feature_ablation(case)
    assert_maps(found, {k: expected[k] for k in ("patch", "question")})
    assert_maps(found, {k: expected[k].sum(0, keepdim=True) for k in ("textual", "visual")})
    assert found.places == {"textual": ["everywhere"], "visual": ["everywhere"]} and found.gap is None
    assert_maps(occlusion(case, window=1), {"patch": expected["patch"]})
    squares = expected["patch"].unfold(0, 2, 1).unfold(1, 2, 1).sum((2, 3))  # (3, 3)
    assert occlusion(case, window=2).patches[0, 0].item() == pytest.approx(squares[0, 0].item(), abs=1e-3)
    assert occlusion(case, window=2).patches[1, 2].item() == pytest.approx(squares[0:2, 1:3].mean().item(), abs=1e-3)


def test_shapley_values_of_a_product_are_shared_and_add_up():
    case = Additive(product=3.0)
    found, terms = shapley(case), {k: v.sum().item() for k, v in case.expected().items()}
    for kind in ("textual", "visual"):
        terms[kind] += 1.5
    assert found.totals == pytest.approx(terms, abs=1e-3) and abs(found.gap) < 1e-3
    drawn = shapley(case, samples=7)
    assert "7 random orders" in drawn.method and abs(drawn.gap) < 1e-3
    assert drawn.totals["patch"] == pytest.approx(terms["patch"], abs=1e-3)
    assert shapley(case, ["patch"]).totals == pytest.approx({"patch": terms["patch"]}, abs=1e-3)


def test_things_in_the_picture_get_their_pixels():
    """A picture of 64 pixels, which the model sees at 32: boxes shrink with it, the smaller one wins an overlap."""
    case = Additive()
    boxes = [("large", (0, 0, 32, 64)), ("small", (16, 16, 16, 16))]
    area = torch.zeros(32, 32, dtype=torch.long)
    area[:, :16] = 1
    area[8:16, 8:16] = 2
    assert torch.equal(box_mask(case, boxes)[0, 0], area)
    terms = (case.weights["patch"] * (case.pixels - case.pixels.mean((2, 3), keepdim=True))).sum((0, 1))
    expected = [("background", terms[area == 0]), ("large", terms[area == 1]), ("small", terms[area == 2])]
    for found in (feature_ablation(case, boxes=boxes), shapley(case, ["patch", "textual"], boxes=boxes)):
        assert [name for name, _ in found.objects] == [name for name, _ in expected] and found.patches is None
        for (_, value), (_, pixels) in zip(found.objects, expected):
            assert value == pytest.approx(pixels.sum().item(), abs=1e-3)
    assert found.totals["patch"] == pytest.approx(terms.sum().item(), abs=1e-3)
    with pytest.raises(InputError, match="'hidden' covers no pixel of its own"):
        box_mask(case, [("hidden", (2, 2, 0.2, 0.2))])


def test_pixels_beyond_the_last_patch_count_to_it():
    case = types.SimpleNamespace(grid=(2, 2), patch=3, pixels=torch.zeros(1, 3, 7, 8))
    index = patch_index(case)[0, 0]
    assert index[:, 0].tolist() == [0, 0, 0, 2, 2, 2, 2] and index[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert patch_sums(case, torch.ones(1, 1, 7, 8)).tolist() == [[9, 15], [12, 20]]


# ---- the model -----------------------------------------------------------------------------------------------------


def test_a_model_that_looks_at_nothing_owes_nothing_to_anything():
    """Without attention's output the answer's positions know of themselves alone."""
    backbone = tuned()
    for block in backbone.model.get_base_model().model.language_model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
    case = case_of(backbone)
    for name, method in METHODS.items():
        found = method(case)
        for value in (found.patches, found.question, found.textual, found.visual):
            assert value is None or value.abs().max() < 1e-5, name


def test_integrated_gradients_find_a_leap():
    """f leaps from 0 to 5 within a hundredth of the way; its values are known: the pixels' shares of the way."""
    case = case_of(target=Target("two"))
    blank = baseline_pixels(case.pixels, "mean", 8)
    way = case.pixels - blank
    share = way.square() / way.square().sum()

    class Leap(Case):
        def __init__(self):
            self.__dict__ |= case.__dict__

        def __call__(self, patch=None):
            return 5 * torch.sigmoid(1000 * (((patch - blank) * way).flatten(1).sum(1) / way.square().sum() - 0.371))

    found = integrated_gradients(Leap(), ["patch"])
    assert abs(found.gap) < 0.25 and found.method != "integrated gradients, 96 points"
    close(found.patches / found.totals["patch"], share.unfold(2, 8, 8).unfold(3, 8, 8).sum((0, 1, 4, 5)))
    rough = integrated_gradients(Leap(), ["patch"], steps=16)
    assert rough.method == "integrated gradients, 16 points" and abs(rough.gap) > 1
    with pytest.raises(InputError, match="steps=15: the first pieces of the way need 16"):
        integrated_gradients(case, steps=15)


def test_integrated_gradients_close_the_gap_with_more_steps():
    case = case_of()
    rough = integrated_gradients(case, steps=16, tolerance=0)
    fine = integrated_gradients(case, steps=96, tolerance=0)
    assert abs(fine.gap) < 0.02 * abs(fine.score - fine.base) and abs(fine.gap) < abs(rough.gap) / 4
    assert fine.score == pytest.approx(case().item(), abs=1e-5)
    with torch.no_grad(), without(case.backbone, textual=[0, 1, 2], visual=[0, 1]):
        blank = case(baseline_pixels(case.pixels, "mean", 8), case.nothing.expand(1, -1, -1))
    assert fine.base == pytest.approx(blank.item(), abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_attribution_reacts_to_the_picture(name):
    """A cache of the picture's features, as `generate` keeps one, would make this identical or zero."""
    backbone = tuned()
    one, other = METHODS[name](case_of(backbone)), METHODS[name](case_of(backbone, seed=5))
    if one.patches is not None:
        assert one.patches.abs().max() > 1e-4 and (one.patches - other.patches).abs().max() > 1e-4
        assert one.patches.shape == (4, 4)
    else:
        assert any(abs(one.totals[k] - other.totals[k]) > 1e-4 for k in one.totals)


def test_ablation_is_what_the_whole_way_from_picture_to_score_gives():
    backbone = tuned()
    case = case_of(backbone)
    found = feature_ablation(case)
    image, whole = case.image, score(backbone, [case.image], [QUESTION], [TARGET])
    keep = torch.ones(1, 4, 4)
    keep[0, 1, 3] = 0
    blank = baseline_pixels(case.pixels, "mean", 8)
    prepared = backbone.training_inputs

    def without_patch(*args):
        batch = prepared(*args)
        return batch | {"pixel_values": replace_patches(batch["pixel_values"], keep, blank, 8)}

    backbone.training_inputs = without_patch
    changed = score(backbone, [image], [QUESTION], [TARGET])
    backbone.training_inputs = prepared
    close(found.patches[1, 3], (whole - changed)[0])
    for kind, i in (("textual", 2), ("visual", 1)):
        with without(backbone, **{kind: [i]}):
            changed = score(backbone, [image], [QUESTION], [TARGET])
        close(getattr(found, kind)[0, i], (whole - changed)[0])


@pytest.mark.parametrize("readout", ("output", "parameter"))
def test_conductance_of_replaced_prompts_adds_up(readout):
    """Each layer's prompts are inputs of their own then, so that it is the integrated gradient of all of them."""
    case = case_of(tuned(visual_readout=readout))
    found = conductance(case, steps=40)
    assert found.textual.shape == (2, 3) and found.visual.shape == (2 + (readout == "parameter"), 2)
    assert [len(found.places[k]) for k in ("textual", "visual")] == [len(found.textual), len(found.visual)]
    assert abs(found.gap) < 0.02 * abs(found.score - found.base) and abs(found.score - found.base) > 0.01


def test_conductance_counts_a_prompt_once_where_the_next_layers_have_none():
    case = case_of(tuned(textual_layers=[0], visual_layers=[0]))
    found = conductance(case, steps=40)
    assert found.places == {"textual": ["LLM layer 1"], "visual": ["vision layer 1"]}
    assert found.textual.shape == (1, 3) and found.visual.shape == (1, 2)
    assert abs(found.gap) < 0.02 * abs(found.score - found.base) and abs(found.score - found.base) > 0.01


@pytest.mark.parametrize("update", ("replace", "carry"))
def test_conductance_is_captums_layer_by_layer(update):
    backbone = tuned(textual_update=update, textual_position="before_instruction")
    case = case_of(backbone, target=Target("two"))  # Captum remembers one call of a layer, and this takes one
    found = conductance(case, steps=48)
    layer = backbone.model.base_model.layer
    named = dict(backbone.model.named_parameters())
    names = [n for side in ("textual", "visual") for n in named if f"m2pt_{side}_prompts" in n]
    ends = tuple(named[n].detach()[None] for n in names)
    starts = tuple(e.mean(1, keepdim=True).expand_as(e) for e in ends)

    def forward(*prompts):
        return case(parameters=dict(zip(names, prompts)))

    slots = [(found.textual[j], layer.backbone.textual_blocks[j], case.segments.where("textual")) for j in (0, 1)]
    slots += [(found.visual[i], layer.backbone.visual_blocks[i], torch.tensor([-2, -1])) for i in (0, 1)]
    with _one_argument(layer.backbone.visual_blocks):
        for mine, block, columns in slots:
            theirs = LayerConductance(forward, block).attribute(
                ends, starts, n_steps=300, attribute_to_layer_input=True
            )
            theirs = theirs[0] if isinstance(theirs, tuple) else theirs
            close(mine, theirs[0, columns].sum(-1).detach(), atol=0.01 * mine.abs().max().item() + 1e-4)
    assert (found.gap is None) == (update == "carry") == (not found.totals)


def test_visual_prompts_alone_can_be_explained():
    case = case_of(tuned(num_textual_prompts=0))
    for name in ("integrated gradients", "conductance", "feature ablation"):
        found = METHODS[name](case)
        assert found.textual is None and found.visual.abs().max() > 1e-4, name
    assert "visual" in shapley(case).totals


def test_seeds_decide_and_no_global_generator_moves():
    case = case_of()
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, same, other = (gradient_shap(case, samples=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.patches, same.patches) and not torch.equal(one.patches, other.patches)
    drawn = [shapley(case, samples=1, seed=s).totals for s in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and any(d != drawn[0] for d in drawn[2:])
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


def test_without_prompts_there_are_picture_and_question():
    case = case_of(helpers.tiny_backbone())
    for method in (integrated_gradients, feature_ablation, shapley):
        found = method(case)
        assert found.textual is None and found.visual is None and not {"textual", "visual"} & set(found.totals)
    with pytest.raises(InputError, match="the active adapter has none"):
        conductance(case)
    with pytest.raises(InputError, match="this model has patch, question: name some"):
        integrated_gradients(case, ["textual"])
    with pytest.raises(InputError, match="window=5: the picture has 4 × 4"):
        occlusion(case, window=5)


@pytest.mark.parametrize("name", METHODS)
def test_models_are_left_as_they_were(name):
    backbone = tuned()
    model = backbone.model
    case = case_of(backbone)
    case()  # transformers puts its own hooks on at the first call, for good
    model.train()

    def state():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
        return hooks, [p.requires_grad for p in model.parameters()], torch.is_grad_enabled(), model.active_adapter

    before, values = state(), {n: p.detach().clone() for n, p in model.named_parameters()}
    METHODS[name](case)
    assert state() == before
    calls, head = [], model.get_base_model().lm_head

    def fail(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("on the way")

    handle = head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on the way"):
        METHODS[name](case)
    handle.remove()
    assert state() == before
    assert all(torch.equal(values[n], p) and p.grad is None for n, p in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("adapter", (None, "m2pt", "m2pt-carry"))
def test_the_embedded_model_under_its_adapters(adapter):
    scene = make_scene(7)
    boxes = [(thing.name, thing.box) for thing in scene.things]
    case = Case(mmpt.load("tiny", adapter=adapter), scene.image, "What is in the picture?")
    parts = {"patch", "question"} | ({"textual", "visual"} if adapter else set())
    found = shapley(case)
    assert found.totals.keys() == parts and abs(found.gap) < 1e-3
    assert sum(found.totals.values()) == pytest.approx(found.score - found.base, abs=1e-3)
    ablated = feature_ablation(case, ["patch"], boxes=boxes)
    assert [name for name, _ in ablated.objects] == ["background", *(thing.name for thing in scene.things)]
    assert max(abs(value) for _, value in ablated.objects) > 1e-2
    gradients = integrated_gradients(case, steps=16)
    assert gradients.patches.shape == (7, 7) and gradients.patches.abs().max() > 1e-3
    if adapter:
        layers = conductance(case, steps=1)
        assert layers.textual.isfinite().all() and len(layers.textual) == 30 and layers.textual.abs().max() > 1e-3
