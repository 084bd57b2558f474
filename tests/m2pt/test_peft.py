"""M²PT as a PEFT method: PEFT's own behaviour checklist, and what it leaves behind on the host (nothing)."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.tuners.tuners_utils import NoMatchingPeftModuleError
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from mmpt.m2pt import M2PTConfig, M2PTLayer, M2PTModel, register


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def traces(host):
    """Everything that M²PT could leave on a host."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    return {
        "modules": [(n, type(m)) for n, m in host.named_modules()],
        "hooks": [(n, h, len(getattr(m, h))) for n, m in host.named_modules() for h in hooks],
        "attributes": sorted(k for m in (host, host.model) for k in m.__dict__ if "expand" in k or "prepare" in k),
        "keys": list(host.state_dict()),
    }


@pytest.fixture
def batch(tools):
    return tools.make_batch((0, 1, 2))


def test_registered_once():
    member = register("m2pt", M2PTConfig, M2PTModel)
    assert member is PeftType("M2PT") is PeftType["M2PT"] is PeftType.M2PT
    assert member == "M2PT" and member.value == "M2PT" and member in list(PeftType)
    assert len(list(PeftType)) == len(set(PeftType)) and list(PeftType).count(member) == 1
    assert copy.deepcopy(member) is member and pickle.loads(pickle.dumps(member)) is member
    assert LoraConfig().peft_type is PeftType.LORA


def test_only_llava():
    model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=50))
    with pytest.raises(NoMatchingPeftModuleError, match="LlamaForCausalLM holds none"):
        get_peft_model(model, M2PTConfig())


def test_what_is_trainable(tools, batch):
    model = tools.tuned()
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if ".m2pt." in n} and len(names) == 3 + 3 + 4
    model.train()
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == parameter.requires_grad, name


@pytest.mark.parametrize("readout", ["output", "parameter"])
def test_layers_out_of_the_llms_sight_get_no_prompts(tools, readout):
    model = tools.tuned(visual_readout=readout)  # four layers, feature layer -2
    visual, textual, _ = tools.prompts_of(model)
    assert list(visual) == ([0, 1, 2] if readout == "output" else [0, 1, 2, 3]) and list(textual) == [0, 1, 2]


def test_disable_and_unload_restore_the_base(tools, batch):
    host = tools.make_host()
    host(**batch, output_hidden_states=True)  # transformers' own hooks, installed lazily
    host.model.vision_tower(batch["pixel_values"], output_hidden_states=True)
    before, base = traces(host), logits(host, batch)
    model = tools.tuned(host)
    tuned = logits(model, batch)
    assert (tuned - base).abs().max() > 0.1
    for _ in range(2):
        with model.disable_adapter():
            tools.assert_close(logits(model, batch), base)
            with model.disable_adapter():
                tools.assert_close(logits(model, batch), base)
        model.base_model.enable_adapter_layers()
        tools.assert_close(logits(model, batch), tuned)
    assert traces(host) != before
    assert model.unload() is host
    assert traces(host) == before and not hasattr(host, "peft_config")
    tools.assert_close(logits(host, batch), base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = tools.tuned(host)
    tools.assert_close(logits(again, batch), tuned)


def test_merge_is_refused(tools, batch):
    model = tools.tuned()
    before = logits(model, batch)
    for method in (model.merge_and_unload, model.merge_adapter, model.base_model.layer.merge):
        with pytest.raises(NotImplementedError, match="prompts are extra tokens.*use `unload\\(\\)`"):
            method()
    with pytest.raises(NotImplementedError, match="nothing to unmerge"):
        model.unmerge_adapter()
    tools.assert_close(logits(model, batch), before)


CASES = [
    {},
    {"num_textual_prompts": 0},
    {"num_visual_prompts": 0},
    {"tune_projector": False},
    {"visual_layers": [0, 2], "textual_layers": "last", "textual_position": "before_instruction"},
]


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_save_and_load(tools, tmp_path, batch, case, low_cpu_mem_usage):
    model = tools.tuned(**case)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(v.numel() for v in saved.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "target_modules" not in config and config["peft_type"] == "M2PT"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        loaded = PeftModel.from_pretrained(tools.make_host(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    tools.assert_close(logits(loaded, batch), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    loaded.load_adapter(tmp_path, "other", is_trainable=True)
    loaded.set_adapter("other")
    tools.assert_close(logits(loaded, batch), expected)
    again = get_peft_model_state_dict(loaded, adapter_name="other")
    assert again.keys() == saved.keys() and all(torch.equal(again[k], saved[k]) for k in saved)


def test_keys(tools):
    keys = set(get_peft_model_state_dict(tools.tuned()))
    assert keys == {
        *(f"m2pt.m2pt_visual_prompts.{i}" for i in range(3)),
        *(f"m2pt.m2pt_textual_prompts.{j}" for j in range(3)),
        *(f"m2pt.m2pt_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")),
    }


def test_renamed_host_modules(tools, tmp_path, batch):
    """A checkpoint outlives the names of the host's modules, as in `vision_tower.vision_model.encoder` of old."""
    model = tools.tuned()
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)

    class Nest(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.inner_encoder = encoder

        def forward(self, **kwargs):
            return self.inner_encoder(**kwargs)

    host = tools.make_host()
    host.model.vision_tower.encoder = Nest(host.model.vision_tower.encoder)
    assert any("inner_encoder.layers.0" in k for k in host.state_dict())
    tools.assert_close(logits(PeftModel.from_pretrained(host, tmp_path), batch), expected)


@pytest.mark.parametrize("change", ["width", "depth"])
def test_adapter_for_another_backbone(tools, tmp_path, change):
    model = tools.tuned()
    model.save_pretrained(tmp_path)
    host = tools.make_host()
    if change == "width":
        host.model.vision_tower.config.hidden_size = 64
        match = r"m2pt_visual_prompts.0 is 2 x 32 in the file and 2 x 64 in this model"
    else:
        host.model.language_model.layers = host.model.language_model.layers[:2]
        match = r"m2pt_textual_prompts.2 is 3 x 48 in the file and absent in this model"
    with pytest.raises(ValueError, match="made for another backbone.*" + match):
        PeftModel.from_pretrained(host, tmp_path)


def test_several_adapters(tools, tmp_path, batch):
    """Adapters of other lengths, sides and names: each is as if alone."""
    cases = {
        "default": {},
        "default2": {"num_textual_prompts": 5, "num_visual_prompts": 4},
        "efaul": {"num_visual_prompts": 0, "tune_projector": False, "textual_layers": [1]},
        "other_default": {"num_textual_prompts": 0, "visual_readout": "none"},
    }
    alone = {}
    for seed, (name, case) in enumerate(cases.items()):
        model = tools.tuned(randomized=False, **case)
        tools.randomize(model, seed=seed)
        alone[name] = logits(model, batch)
    model = tools.tuned(randomized=False)
    for name in list(cases)[1:]:
        model.add_adapter(name, M2PTConfig(**{"num_textual_prompts": 3, "num_visual_prompts": 2} | cases[name]))
        assert not any(p.requires_grad for n, p in model.named_parameters() if f".{name}." in n)
    for seed, name in enumerate(cases):
        tools.randomize(model, seed=seed, adapter=name)
    for name in [*cases, *reversed(cases)]:
        model.set_adapter(name)
        tools.assert_close(logits(model, batch), alone[name])
        assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad and "prompts" in n} == {name}
    with pytest.raises(ValueError, match="one adapter at a time"):
        model.base_model.set_adapter(["default", "efaul"])
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="runs one adapter for all rows, but got .*: leave them out"):
            call(**batch, adapter_names=["default", "efaul", "__base__"])
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("efaul", M2PTConfig())
    model.set_adapter("efaul")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tools.make_host(), tmp_path / "default2", adapter_name="foodefault_bar")
    tools.assert_close(logits(loaded, batch), alone["default2"])

    assert model.get_model_status().active_adapters == ["efaul"]
    assert model.get_layer_status()
    model.delete_adapter("default2")
    tools.assert_close(logits(model, batch), alone["efaul"])
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("efaul")
    assert model.active_adapter in ("default", ["default"])
    tools.assert_close(logits(model, batch), alone["default"])
    with pytest.raises(ValueError, match="does not exist"):
        model.base_model.delete_adapter("nobody")


def test_delete_the_last_adapter_and_add_another(tools, batch):
    host = tools.make_host()
    base = logits(host, batch)
    hooked = traces(host)["hooks"]
    model = tools.tuned(host)
    tuned = logits(model, batch)
    model.delete_adapter("default")
    # PeftModel itself cannot run without an active adapter; its tuner and the host can.
    tools.assert_close(logits(model.base_model, batch), base)
    assert [h for h in traces(host)["hooks"] if not h[0].startswith("m2pt")] == hooked
    model.add_adapter("new", M2PTConfig(num_textual_prompts=3, num_visual_prompts=2))
    model.set_adapter("new")
    tools.randomize(model, adapter="new")
    tools.assert_close(logits(model, batch), tuned)


@torch.no_grad()
def test_wrapping_a_host_twice_leaves_nothing_of_the_first(tools, batch):
    smaller = {"num_visual_prompts": 0, "tune_projector": False, "num_kv_prompts": 0}
    expected = logits(tools.tuned(**smaller), batch)
    again = tools.tuned(tools.tuned(num_kv_prompts=2).base_model.model, **smaller)
    tools.assert_close(logits(again, batch), expected, atol=1e-6)
    assert len(again.base_model.layer.m2pt_projector) == len(again.base_model.layer.m2pt_attention_prompts) == 0


@torch.no_grad()
def test_embeddings_saved_beside_the_prompts(tools, tmp_path, batch):
    model = tools.tuned()
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    tools.assert_close(logits(PeftModel.from_pretrained(tools.make_host(), tmp_path), batch), logits(model, batch))


def test_failed_adapters_change_nothing(tools, batch):
    host = tools.make_host()
    before = traces(host)
    for case, match in (
        ({"textual_layers": [7]}, r"textual_layers=\[7\]: this model has 3 layers that count, so indices go to 2"),
        ({"visual_layers": [3]}, r"visual_layers=\[3\]: this model has 3 layers that count"),
        ({"visual_layers": [3], "visual_readout": "parameter"}, "features are taken after 3 layers"),
        ({"init": "vocabulary", "init_token_ids": [97]}, "the model knows 97 tokens"),
    ):
        with pytest.raises(ValueError, match=match):
            get_peft_model(host, M2PTConfig(**case))
        host.__dict__.pop("peft_config", None)  # PEFT's, set before injection
        assert traces(host) == before
    few = tools.make_host()
    projector = few.model.multi_modal_projector.linear_1
    projector.weight = torch.nn.Parameter(projector.weight.to(torch.uint8), requires_grad=False)
    before = traces(few)
    with pytest.raises(ValueError, match="the projector is held in few bits; name it in llm_int8_skip_modules"):
        get_peft_model(few, M2PTConfig())
    few.__dict__.pop("peft_config", None)
    assert traces(few) == before
    model = tools.tuned(host)
    expected = logits(model, batch)
    with pytest.raises(ValueError, match="textual_layers"):
        model.add_adapter("bad", M2PTConfig(textual_layers=[7]))
    assert list(model.peft_config) == ["default"]
    tools.assert_close(logits(model, batch), expected)


def test_deepcopy_and_pickle_are_independent(tools, tmp_path, batch):
    model = tools.tuned()
    torch.save(model, tmp_path / "model.pt")  # before transformers' capture hooks, which cannot be pickled
    expected = logits(model, batch)
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        tools.assert_close(logits(other, batch), expected)
        tools.randomize(other, seed=9)
        changed = logits(other, batch)
        assert (changed - expected).abs().max() > 1e-3
        tools.assert_close(logits(model, batch), expected)
        tokens = other.generate(**batch, max_new_tokens=2, num_beams=2, do_sample=False)
        host = other.unload()
        assert (logits(host, batch) - changed).abs().max() > 1e-3
        tools.assert_close(logits(model, batch), expected)
        model_tokens = tools.randomize(copy.deepcopy(model), seed=9).generate(
            **batch, max_new_tokens=2, num_beams=2, do_sample=False
        )
        assert torch.equal(tokens, model_tokens)


def test_transformers_adapter_methods(tools, tmp_path, batch):
    """`model.add_adapter`, `load_adapter`, `set_adapter`, `disable_adapters`, `delete_adapter` of transformers."""
    model = tools.tuned()
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "peft")
    host = tools.make_host()
    base = logits(host, batch)
    host.add_adapter(M2PTConfig(num_textual_prompts=3, num_visual_prompts=2))
    tools.randomize(host)
    tools.assert_close(logits(host, batch), expected)
    host.save_pretrained(tmp_path / "transformers")
    for folder in ("peft", "transformers"):
        other = tools.make_host()
        info = other.load_adapter(str(tmp_path / folder))
        assert not info.missing_keys and not info.unexpected_keys
        tools.assert_close(logits(other, batch), expected)
        tools.assert_close(logits(PeftModel.from_pretrained(tools.make_host(), tmp_path / folder), batch), expected)
    host.disable_adapters()
    tools.assert_close(logits(host, batch), base)
    host.enable_adapters()
    tools.assert_close(logits(host, batch), expected)
    host.load_adapter(str(tmp_path / "peft"), "second")
    host.set_adapter("second")
    host.delete_adapter("default")
    tools.assert_close(logits(host, batch), expected)
    host.delete_adapter("second")
    tools.assert_close(logits(host, batch), base)


def test_inject_adapter_in_model(tools, batch):
    config = M2PTConfig(num_textual_prompts=3, num_visual_prompts=2)
    host = inject_adapter_in_model(config, tools.make_host())
    tools.randomize(host)
    assert isinstance(host.m2pt, M2PTLayer)
    tools.assert_close(logits(host, batch), logits(tools.tuned(), batch))
    inner = inject_adapter_in_model(config, tools.make_host().model)
    tools.randomize(inner)
    with torch.no_grad():
        hidden = inner(**batch).last_hidden_state
        tools.assert_close(hidden, host.model(**batch).last_hidden_state)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_task_types(tools, batch, task_type):
    model = tools.tuned(task_type=task_type)
    tools.assert_close(logits(model, batch), logits(tools.tuned(), batch))
    model.generate(**batch, max_new_tokens=2)


def test_bf16(tools, batch):
    """A bf16 base gets fp32 prompts, as PEFT has it, computes in bf16, and follows the fp32 model."""
    host = tools.make_host().to(torch.bfloat16)
    model = tools.tuned(host)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    out = logits(model, batch)
    assert out.dtype == torch.bfloat16
    exact = logits(tools.tuned(tools.make_host().to(torch.bfloat16).float()), batch)
    keep = batch["attention_mask"].bool()
    assert (out[keep] - exact[keep]).abs().mean() < 0.1 * exact[keep].abs().mean()
    assert model.generate(**batch, max_new_tokens=3).shape[1] == batch["input_ids"].shape[1] + 3
    half = get_peft_model(tools.make_host().to(torch.bfloat16), M2PTConfig(), autocast_adapter_dtype=False)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert logits(half, batch).isfinite()[keep].all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert logits(tools.tuned(), batch)[keep].isfinite().all()


def test_config_is_found_by_its_type(tools, tmp_path):
    config = M2PTConfig(num_textual_prompts=4, textual_layers=[2, 0], visual_update="carry")
    config.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, M2PTConfig) and loaded.textual_layers == [0, 2]
    for other in (loaded, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other.to_dict() == config.to_dict()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        assert PeftConfig.from_pretrained(tmp_path).num_textual_prompts == 4


@pytest.mark.slow
def test_compiles(tools, batch):
    model = tools.tuned()
    expected = logits(model, batch)
    compiled = torch.compile(model, backend="eager")
    tools.assert_close(logits(compiled, batch), expected)
    torch._dynamo.reset()
