"""Targets against a literal reading of the logits; a case with parts of it changed against the thing itself."""

import helpers
import pytest
import torch
from helpers import score
from helpers import tuned_backbone as tuned

from mmpt.errors import InputError
from mmpt.explain.targets import Case, Target, still, token_log_probabilities
from mmpt.scenes import make_scene

QUESTION = "How many animals?"


def picture(seed=0):
    return make_scene(seed, 64).image


@torch.no_grad()
def literally(backbone, image, question, answer):
    """(n,) log-probabilities, token by token, from the question's inputs and the tokenizer alone."""
    tokenizer = backbone.processor.tokenizer
    batch = backbone.inputs([image], [question])
    out = []
    for token in [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
        out.append(backbone.model(**batch).logits[0, -1].log_softmax(-1)[token])
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[token]])], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return torch.stack(out)


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", (helpers.tiny_backbone(), tuned()), ids=("base", "tuned"))
def test_scores_are_sums_single_tokens_and_differences(backbone):
    images, questions = [picture(), picture(), picture(1)], [QUESTION, QUESTION, "Is it a cat?"]
    targets = [Target("two"), Target("two", token=1), Target("no", other="yes, it is")]
    two = literally(backbone, images[0], QUESTION, "two")
    no, yes = (literally(backbone, images[2], questions[2], a) for a in ("no", "yes, it is"))
    assert len(two) == 4  # bytes, and the end
    expected = torch.stack([two.sum(), two[1], no.sum() - yes.sum()])
    close(score(backbone, images, questions, targets), expected)
    for image, question, target, value in zip(images, questions, targets, expected):
        close(Case(backbone, image, question, target)(), value[None])


def test_rows_of_different_lengths_have_their_own_tokens():
    backbone = tuned()
    answers = ["a", "a longer answer"]
    together = token_log_probabilities(backbone, [picture()] * 2, [QUESTION, "What?"], answers)
    for got, question, answer in zip(together, (QUESTION, "What?"), answers):
        close(got, literally(backbone, picture(), question, answer))


def test_without_a_target_it_is_the_models_own_answer():
    backbone = tuned()
    backbone.answer = lambda images, questions: ["mine"]
    assert Case(backbone, picture(), QUESTION).target == Target("mine")


def test_targets_say_what_they_are():
    assert Target("a cat").words() == "log-probability of the answer “a cat”"
    assert Target("a cat", token=0).words() == "log-probability of token 1 of the answer “a cat”"
    assert Target("a", other="b").words() == "log-probability of the answer “a” minus that of “b”"
    assert [t.kind for t in (Target("a"), Target("a", token=0), Target("a", other="b"))] == [
        "answer", "token", "difference",
    ]  # fmt: skip


def test_impossible_targets_are_refused():
    with pytest.raises(InputError, match="two targets"):
        Target("a", token=0, other="b")
    with pytest.raises(InputError, match="'a' and itself"):
        Target("a", other="a")
    with pytest.raises(InputError, match="'two' has 4 tokens .* no token 4; give one from 0 to 3"):
        Case(tuned(), picture(), QUESTION, Target("two", token=4))
    with pytest.raises(InputError, match="no token -1"):
        score(tuned(), [picture()], [QUESTION], [Target("two", token=-1)])


@pytest.mark.parametrize("backbone", (helpers.tiny_backbone(), tuned()), ids=("base", "tuned"))
def test_the_same_parts_change_nothing_and_other_parts_are_the_other_case(backbone):
    target = Target("two", other="one")
    case, other = Case(backbone, picture(), QUESTION, target), Case(backbone, picture(1), "Hew meny animals?", target)
    with torch.no_grad():
        close(case(patch=case.pixels, question=case.embeddings), case())
        rows = case(torch.cat([case.pixels, other.pixels]), torch.cat([case.embeddings, other.embeddings]))
        close(rows, torch.cat([case(), other()]))
    assert (case() - other()).abs() > 1e-4
    assert case.words == list(QUESTION)


def test_many_rows_are_scored_in_cuts():
    case = Case(tuned(), picture(), QUESTION, Target("two"))
    pixels = torch.cat([Case(case.backbone, picture(i), QUESTION, Target("two")).pixels for i in range(6)])
    strengths = torch.rand(6, 3)
    with torch.no_grad():
        assert case.rows < 6
        single = [case(patch=pixels[i : i + 1], textual=strengths[i : i + 1]) for i in range(6)]
        close(case(patch=pixels, textual=strengths), torch.cat(single))


def test_parameters_may_differ_from_row_to_row():
    case = Case(tuned(), picture(), QUESTION, Target("two"))
    parameters = dict(case.backbone.model.named_parameters())
    names = [n for n in parameters if "prompts" in n]
    others = {n: torch.stack([parameters[n].detach(), torch.randn_like(parameters[n])]) for n in names}
    with torch.no_grad():
        first, second = case(parameters=others)
        close(first[None], case())
        for n in names:
            parameters[n].data = others[n][1]
        close(second[None], case())


def test_a_case_leaves_the_model_as_it_was():
    backbone = tuned()
    backbone.model.train()
    backbone.model.get_base_model().model.vision_tower.eval()
    modes = [m.training for m in backbone.model.modules()]
    tunable = [p.requires_grad for p in backbone.model.parameters()]
    case = Case(backbone, picture(), QUESTION, Target("two"))
    pixels = case.pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case(patch=pixels)[0], pixels)
    assert gradient.abs().max() > 0 and all(p.grad is None for p in backbone.model.parameters())
    with pytest.raises(ZeroDivisionError), still(backbone.model):
        assert not any(m.training for m in backbone.model.modules())
        raise ZeroDivisionError
    assert modes == [m.training for m in backbone.model.modules()] and any(modes) and not all(modes)
    assert tunable == [p.requires_grad for p in backbone.model.parameters()] and any(tunable)
