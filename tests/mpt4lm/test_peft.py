"""MPT4LM as a PEFT method: PEFT's own behaviour checklist, and what it leaves behind on the host (nothing)."""

import copy
import json
import warnings

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import NoMatchingPeftModuleError
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, GPT2Config, GPT2LMHeadModel

from mmpt.m2pt import M2PTConfig
from mmpt.mpt4lm import MPT4LMConfig, MPT4LMLayer, VisionBesideLM

LMS = ["llama", "t5"]


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def traces(host):
    """Everything that MPT4LM could leave on a host."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    return {
        "modules": [(n, type(m)) for n, m in host.named_modules()],
        "hooks": [(n, h, len(getattr(m, h))) for n, m in host.named_modules() for h in hooks],
        "keys": list(host.state_dict()),
    }


@pytest.fixture(params=LMS)
def lm(request):
    return request.param


@pytest.fixture
def batch(tools, lm):
    return tools.make_batch((1, 0, 1), lm=lm)


def test_two_methods_are_registered():
    assert PeftType("MPT4LM") is PeftType.MPT4LM is not PeftType.M2PT
    assert MPT4LMConfig().peft_type is PeftType.MPT4LM and M2PTConfig().peft_type is PeftType.M2PT
    assert len(list(PeftType)) == len(set(PeftType))


def test_only_a_host_of_a_known_family(tools):
    llm = tools.make_host().language_model
    with pytest.raises(NoMatchingPeftModuleError, match=r"LlamaForCausalLM: make a host with VisionBesideLM\.of"):
        get_peft_model(llm, MPT4LMConfig(**tools.SMALL))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=1, n_head=4, vocab_size=97))
    tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(NoMatchingPeftModuleError, match="GPT2LMHeadModel has others"):
        get_peft_model(VisionBesideLM.of(tower, gpt2), MPT4LMConfig(**tools.SMALL))


def test_what_is_trainable(tools, lm, batch):
    model = tools.tuned(tools.make_host(lm=lm))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if ".mpt4lm." in n}
    model.train()
    assert not model.get_base_model().vision_tower.training and model.get_base_model().language_model.training
    out = model(**batch)
    out.logits.log_softmax(-1)[..., 7].mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name


def test_disable_and_unload_restore_the_base(tools, lm, batch):
    host = tools.make_host(lm=lm)
    host(**batch, output_hidden_states=True)  # transformers' own hooks, installed lazily
    host.get_image_features(batch["pixel_values"])
    before, base = traces(host), logits(host, batch)
    model = tools.tuned(host)
    tuned = logits(model, batch)
    assert (tuned - base).abs().max() > 0.1
    for _ in range(2):
        with model.disable_adapter():
            tools.assert_close(logits(model, batch), base)
        tools.assert_close(logits(model, batch), tuned)
    assert traces(host) != before
    assert model.unload() is host
    assert traces(host) == before and not hasattr(host, "peft_config")
    tools.assert_close(logits(host, batch), base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = tools.tuned(host)
    tools.assert_close(logits(again, batch), tuned)


def test_merge_is_refused(tools, lm, batch):
    model = tools.tuned(tools.make_host(lm=lm))
    before = logits(model, batch)
    for method in (model.merge_and_unload, model.merge_adapter, model.base_model.layer.merge):
        with pytest.raises(NotImplementedError, match="prompts are extra tokens.*use `unload\\(\\)`"):
            method()
    with pytest.raises(NotImplementedError, match="nothing to unmerge"):
        model.unmerge_adapter()
    tools.assert_close(logits(model, batch), before)


CASES = [{}, {"num_visual_prompts": 0}, {"num_instruction_tokens": 0}, {"adapter_rank": 0}]


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_save_and_load(tools, tmp_path, lm, batch, case, low_cpu_mem_usage):
    model = tools.tuned(tools.make_host(lm=lm), **case)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(v.numel() for v in saved.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "MPT4LM"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        loaded = PeftModel.from_pretrained(tools.make_host(lm=lm), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    tools.assert_close(logits(loaded, batch), expected, atol=1e-6)
    assert not any(p.requires_grad for p in loaded.parameters())
    loaded.load_adapter(tmp_path, "other", is_trainable=True)
    loaded.set_adapter("other")
    tools.assert_close(logits(loaded, batch), expected, atol=1e-6)
    again = get_peft_model_state_dict(loaded, adapter_name="other")
    assert again.keys() == saved.keys() and all(torch.equal(again[k], saved[k]) for k in saved)


def test_keys_name_no_module_of_the_host(tools, lm):
    keys = set(get_peft_model_state_dict(tools.tuned(tools.make_host(lm=lm))))
    parts = {key.removeprefix("mpt4lm.mpt4lm_").split(".")[0] for key in keys}
    assert parts == {"instruction", "cross_attention", "adapters"} and "mpt4lm.mpt4lm_instruction" in keys
    places = {key.split(".")[2] for key in keys if "_adapters." in key}
    if lm == "llama":
        assert places == {f"{i}_{kind}" for i in range(3) for kind in ("attention", "mlp")}
    else:
        kinds = {"encoder": ("attention", "mlp"), "decoder": ("attention", "cross_attention", "mlp")}
        assert places == {f"{stack}_{i}_{kind}" for stack in kinds for i in range(2) for kind in kinds[stack]}


@pytest.mark.parametrize("change", ["tower", "depth"])
def test_adapter_for_another_backbone(tools, tmp_path, change):
    model = tools.tuned()
    model.save_pretrained(tmp_path)
    host = tools.make_host()
    if change == "tower":
        host.config.vision_config.hidden_size = 64
        match = r"picture.attention.k_proj_weight is 24 x 32 in the file and 24 x 64 in this model"
    else:
        host.language_model.model.layers = host.language_model.model.layers[:2]
        match = r"mpt4lm_adapters.2_attention.down.bias is 5 in the file and absent in this model"
    with pytest.raises(ValueError, match="made for another backbone.*" + match):
        PeftModel.from_pretrained(host, tmp_path)


def test_several_adapters(tools, tmp_path, lm, batch):
    """Adapters of other lengths, parts and names: each is as if alone."""
    cases = {
        "default": {},
        "default2": {"num_visual_prompts": 6, "num_instruction_tokens": 1},
        "efaul": {"num_visual_prompts": 0, "adapter_placement": "mlp"},
        "other_default": {"adapter_rank": 0, "condition_on_question": False},
    }
    alone = {}
    for seed, (name, case) in enumerate(cases.items()):
        model = tools.randomize(tools.tuned(tools.make_host(lm=lm), randomized=False, **case), seed=seed)
        alone[name] = get_peft_model_state_dict(model), logits(model, batch)
        model.save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(tools.make_host(lm=lm), tmp_path / "default", is_trainable=True)
    for name in list(cases)[1:]:
        model.load_adapter(tmp_path / name, name)
        assert not any(p.requires_grad for n, p in model.named_parameters() if f".{name}." in f"{n}.")
    for name in [*cases, *reversed(cases)]:
        model.set_adapter(name)
        tools.assert_close(logits(model, batch), alone[name][1], atol=1e-6)
        saved = get_peft_model_state_dict(model, adapter_name=name)
        assert all(torch.equal(saved[key], value) for key, value in alone[name][0].items())
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {n for n, _ in model.named_parameters() if f".{name}." in f"{n}."}
    with pytest.raises(ValueError, match="one adapter at a time"):
        model.base_model.set_adapter(["default", "efaul"])
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="runs one adapter for all rows, but got .*: leave them out"):
            call(**batch, adapter_names=["default", "efaul", "__base__"])
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("efaul", MPT4LMConfig(**tools.SMALL))
    model.set_adapter("efaul")
    assert model.get_model_status().active_adapters == ["efaul"]
    assert model.get_layer_status()
    model.delete_adapter("default2")
    tools.assert_close(logits(model, batch), alone["efaul"][1], atol=1e-6)
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("efaul")
    assert model.active_adapter in ("default", ["default"])
    tools.assert_close(logits(model, batch), alone["default"][1], atol=1e-6)


def test_delete_the_last_adapter_and_add_another(tools, lm, batch):
    host = tools.make_host(lm=lm)
    host.get_image_features(batch["pixel_values"])  # transformers' own hooks, installed lazily
    base, hooked = logits(host, batch), traces(host)["hooks"]
    model = tools.tuned(host)
    tuned = logits(model, batch)
    model.delete_adapter("default")
    # PeftModel itself cannot run without an active adapter; its tuner and the host can.
    tools.assert_close(logits(model.base_model, batch), base)
    assert [h for h in traces(host)["hooks"] if not h[0].startswith("mpt4lm")] == hooked
    torch.manual_seed(0)
    model.add_adapter("new", MPT4LMConfig(**tools.SMALL))
    model.set_adapter("new")
    tools.randomize(model, adapter="new")
    tools.assert_close(logits(model, batch), tuned, atol=1e-6)


def test_wrapping_a_host_twice_leaves_nothing_of_the_first(tools, lm, batch):
    expected = logits(tools.tuned(tools.make_host(lm=lm), num_visual_prompts=0), batch)
    again = tools.tuned(tools.tuned(tools.make_host(lm=lm)).base_model.model, num_visual_prompts=0)
    tools.assert_close(logits(again, batch), expected, atol=1e-6)


def test_failed_adapters_change_nothing(tools, lm, batch):
    host = tools.make_host(lm=lm)
    before = traces(host)
    bad = [
        ({"cross_attention_width": 48}, "cross_attention_width=48: must be below the width of the LLM, 48"),
        ({"num_instruction_tokens": 1, "init_token_ids": [97]}, "the model knows 97 tokens"),
    ]
    for case, match in bad:
        with pytest.raises(ValueError, match=match):
            get_peft_model(host, MPT4LMConfig(**tools.SMALL | case))
        host.__dict__.pop("peft_config", None)  # PEFT's, set before injection
        assert traces(host) == before
    model = tools.tuned(host)
    expected = logits(model, batch)
    with pytest.raises(ValueError, match="cross_attention_width"):
        model.add_adapter("bad", MPT4LMConfig(**tools.SMALL | bad[0][0]))
    assert list(model.peft_config) == ["default"]
    tools.assert_close(logits(model, batch), expected)


def test_deepcopy_and_pickle_are_independent(tools, tmp_path, lm, batch):
    model = tools.tuned(tools.make_host(lm=lm))
    torch.save(model, tmp_path / "model.pt")  # before transformers' capture hooks, which cannot be pickled
    expected = logits(model, batch)
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        tools.assert_close(logits(other, batch), expected)
        tools.randomize(other, seed=9)
        assert (logits(other, batch) - expected).abs().max() > 1e-3
        tools.assert_close(logits(model, batch), expected)
        other.unload()
        tools.assert_close(logits(model, batch), expected)


def test_transformers_adapter_methods(tools, tmp_path, lm, batch):
    """`model.add_adapter`, `load_adapter`, `set_adapter`, `disable_adapters`, `delete_adapter` of transformers."""
    model = tools.tuned(tools.make_host(lm=lm))
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "peft")
    host = tools.make_host(lm=lm)
    base = logits(host, batch)
    torch.manual_seed(0)
    host.add_adapter(MPT4LMConfig(**tools.SMALL))
    tools.randomize(host)
    tools.assert_close(logits(host, batch), expected)
    host.save_pretrained(tmp_path / "transformers")
    for folder in ("peft", "transformers"):
        other = tools.make_host(lm=lm)
        info = other.load_adapter(str(tmp_path / folder))
        assert not info.missing_keys and not info.unexpected_keys
        tools.assert_close(logits(other, batch), expected, atol=1e-6)
        loaded = PeftModel.from_pretrained(tools.make_host(lm=lm), tmp_path / folder)
        tools.assert_close(logits(loaded, batch), expected, atol=1e-6)
    host.disable_adapters()
    tools.assert_close(logits(host, batch), base)
    host.enable_adapters()
    host.load_adapter(str(tmp_path / "peft"), "second")
    host.set_adapter("second")
    host.delete_adapter("default")
    tools.assert_close(logits(host, batch), expected, atol=1e-6)
    host.delete_adapter("second")
    tools.assert_close(logits(host, batch), base)


def test_inject_adapter_in_model(tools, lm, batch):
    torch.manual_seed(0)
    host = inject_adapter_in_model(MPT4LMConfig(**tools.SMALL), tools.make_host(lm=lm))
    tools.randomize(host)
    assert isinstance(host.mpt4lm, MPT4LMLayer)
    tools.assert_close(logits(host, batch), logits(tools.tuned(tools.make_host(lm=lm)), batch))


def test_bf16(tools, lm, batch):
    """A bf16 base gets fp32 adapters, as PEFT has it, computes in bf16, and follows the fp32 model."""
    model = tools.tuned(tools.make_host(lm=lm).to(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    out = logits(model, batch)
    assert out.dtype == torch.bfloat16
    exact = tools.tuned(tools.make_host(lm=lm).to(torch.bfloat16).float())
    exact.load_state_dict(model.state_dict())
    exact = logits(exact, batch)
    keep = batch["attention_mask"].bool() if lm == "llama" else ...
    assert (out[keep] - exact[keep]).abs().mean() < 0.1 * exact[keep].abs().mean()
    question = {k: v for k, v in batch.items() if k != "decoder_input_ids"}
    model.generate(**question, max_new_tokens=3)
    half = get_peft_model(
        tools.make_host(lm=lm).to(torch.bfloat16), MPT4LMConfig(**tools.SMALL), autocast_adapter_dtype=False
    )
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert logits(half, batch)[keep].isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert logits(tools.tuned(tools.make_host(lm=lm)), batch)[keep].isfinite().all()
