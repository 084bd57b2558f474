"""Nearest words against prompts whose words are known, and against cosines taken one by one."""

import helpers
import pytest
import torch
from peft import get_peft_model
from tiny_hosts import backbone_of

import mmpt
from mmpt.errors import InputError
from mmpt.explain.nearest import nearest_words

WORDS = "what?"


def tuned(**fields):
    backbone = helpers.tiny_backbone()
    config = mmpt.M2PTConfig.from_text(backbone.processor.tokenizer, WORDS, num_visual_prompts=2, **fields)
    backbone.model = get_peft_model(backbone.model, config).eval()
    return backbone


def prompts(backbone, layer):
    return backbone.model.base_model.layer.m2pt_textual_prompts["default"][str(layer)]


def first_words(nearest, layer):
    return "".join(prompt[0] for prompt in nearest.words[layer])


def test_prompts_that_are_embeddings_name_their_words():
    backbone = tuned(init="vocabulary", num_textual_prompts=len(WORDS))
    found = nearest_words(backbone, "embedding", count=3)
    assert first_words(found, 0) == first_words(found, 1) == WORDS
    torch.testing.assert_close(found.values[:, :, 0], torch.ones(2, 5))
    assert found.values.shape == (2, 5, 3) and (found.values.diff(dim=-1) < 0).all()


def test_gemmas_embeddings_are_scaled():
    backbone = backbone_of("gemma3")
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight.add_(1.0)  # far from the origin, where the scale matters
    config = mmpt.M2PTConfig.from_text(backbone.processor.tokenizer, WORDS, init="vocabulary", num_textual_prompts=5)
    backbone.model = get_peft_model(backbone.model, config).eval()
    found = nearest_words(backbone, "embedding", count=1)
    assert first_words(found, 0) == WORDS
    torch.testing.assert_close(found.values, torch.ones_like(found.values))


def test_prompts_that_are_hidden_states_name_their_words_in_that_layers_space_only():
    backbone = tuned(init="instruction")
    start = backbone.processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    ids = backbone.processor.tokenizer(WORDS)["input_ids"]
    with torch.no_grad():
        for i, token in enumerate(ids):  # each word after the start token, without the others
            prompts(backbone, 1)[i] = backbone.model.base_model.layer.backbone.layer_inputs([start, token])[1][1]
    found = nearest_words(backbone, "layer")
    assert first_words(found, 1) == WORDS
    torch.testing.assert_close(found.values[1, :, 0], torch.ones(5))
    assert nearest_words(backbone, "embedding").values[1, :, 0].max() < 0.999


@pytest.mark.parametrize("update", ["replace", "carry"])
def test_cosines_one_by_one(update):
    backbone = tuned(textual_update=update)
    table = backbone.model.get_input_embeddings().weight.detach()
    with torch.no_grad():
        prompts(backbone, 1).normal_()
    found = nearest_words(backbone, "embedding", count=4)
    centre = table.median(0).values
    for layer in range(2):
        for i, prompt in enumerate(prompts(backbone, layer).detach()):
            moved = prompt if update == "carry" and layer == 1 else prompt - centre
            cosines = [torch.cosine_similarity(moved, word - centre, dim=0).item() for word in table]
            best = sorted(range(len(table)), key=lambda w: -cosines[w])[:4]
            assert found.words[layer][i] == [backbone.processor.tokenizer.decode([w]) for w in best]
            torch.testing.assert_close(found.values[layer, i], torch.tensor([cosines[w] for w in best]))
    assert found.compared == len(table)


@pytest.mark.parametrize("update", ["replace", "carry"])
def test_random_prompts_are_no_nearer_than_chance(update):
    backbone = tuned(init="vocabulary", textual_update=update, num_textual_prompts=40)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight.add_(torch.rand(260, 1))  # all words share some
        for layer in range(2):
            prompts(backbone, layer).normal_(std=0.05)
    found = nearest_words(backbone, "embedding", count=1)
    nearer = (found.values[..., 0] > found.chance).float().mean(1)
    assert nearer.max() < 0.2 and 0 < nearer.mean()  # one in twenty
    assert (found.chance[1].mean() < found.chance[0].mean() - 0.1) == (update == "carry")


def test_prompts_that_add_nothing_are_near_to_nothing():
    found = nearest_words(tuned(init="vocabulary", textual_update="carry"), "embedding", count=1)
    assert found.values[1].eq(0).all() and found.chance[1].eq(0).all()


def test_the_head_says_what_the_model_would_say_next():
    """A prompt that is the last layer's output at the end of a sequence is read as that sequence's next token."""
    backbone = tuned()
    ids = torch.tensor([backbone.processor.tokenizer("so far")["input_ids"]])
    with torch.no_grad(), backbone.use(None):
        out = []
        hook = backbone.model.get_base_model().model.language_model.norm.register_forward_pre_hook(
            lambda m, args: out.append(args[0][0, -1])
        )
        logits = backbone.model(input_ids=ids).logits[0, -1]
        hook.remove()
        prompts(backbone, 1)[2] = out[0]
    found = nearest_words(backbone, "head", count=2)
    torch.testing.assert_close(found.values[1, 2], logits.topk(2).values)
    assert found.words[1][2] == [backbone.processor.tokenizer.decode([i]) for i in logits.topk(2).indices]
    assert found.chance is None


def test_only_listed_layers_are_named():
    assert nearest_words(tuned(textual_layers=[1]), "embedding").layers == (1,)


def test_what_cannot_be_named_is_refused():
    with pytest.raises(InputError, match="No textual prompts are active"):
        nearest_words(helpers.tiny_backbone())
    with pytest.raises(InputError, match="no space 'tokens' to compare in; choose one of embedding, layer, head"):
        nearest_words(tuned(), "tokens")
