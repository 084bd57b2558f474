import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import tiny_backbone
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_hosts import NEEDED, backbone_of, make_host
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, PaliGemmaProcessor

import mmpt
from mmpt.adapters import adapter_folder
from mmpt.backbones import CHAT_TEMPLATE
from mmpt.errors import InputError
from mmpt.files import ASSETS
from mmpt.loading import default_dtype, weights_size
from mmpt.m2pt import M2PTConfig
from mmpt.methods import METHODS
from mmpt.mpt4lm.backbone import load as load_text_only
from mmpt.reading import read
from mmpt.scenes import make_scene
from mmpt.tiny.describe import QUESTION, compare
from mmpt.train import TrainConfig, train


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in range(8)]


def test_labels_with_a_tokenizer_that_begins_texts(scenes):
    """LLaVA-1.5's tokenizer puts a token before every text."""
    backbone = tiny_backbone()
    backbone.processor = deepcopy(backbone.processor)
    tokenizer = backbone.processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_end|> $A", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id
    talks = [[("What is it?", "A dog"), ("And where?", "top left")]]
    batch = backbone.training_inputs([scenes[0].image], talks)
    assert batch["input_ids"][0, 0] == tokenizer.eos_token_id
    said = tokenizer.decode(batch["labels"][batch["labels"] != -100])
    assert said == "A dog<|im_end|>top left<|im_end|>"


LLAVA_TEMPLATE = (  # as LLaVA-1.5's, which writes no token where an answer ends
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_an_answer_ends_though_the_template_does_not_say_so(tiny, scenes):
    backbone = type(tiny)("tiny", tiny.model, deepcopy(tiny.processor))
    backbone.processor.chat_template = LLAVA_TEMPLATE
    talks = [[("What is it?", "A dog"), ("And where?", "top left")]]
    batch = backbone.training_inputs([scenes[0].image], talks)
    labels, decode = batch["labels"][0], backbone.processor.tokenizer.decode
    assert decode(labels[labels != -100]) == " A dog<|im_end|> top left<|im_end|>"
    asked = backbone.inputs([scenes[0].image], ["What is it?"])["input_ids"][0]
    assert torch.equal(batch["input_ids"][0, : len(asked)], asked) and labels[len(asked)] != -100
    assert decode(backbone.answer_tokens("A dog")) == " A dog<|im_end|>"
    assert decode(tiny.answer_tokens("A dog")) == "A dog<|im_end|>"


ONEVISION_TEMPLATE = (  # as LLaVA-OneVision's, which puts a blank before each text but ends a question without one
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}{% for part in message['content'] %}"
    "{{ '\n<image>' if part['type'] == 'image' else '\n' + part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_an_answer_follows_in_tuning_what_it_follows_when_asked(tiny, scenes):
    backbone = type(tiny)("tiny", tiny.model, deepcopy(tiny.processor))
    backbone.processor.chat_template = ONEVISION_TEMPLATE
    batch = backbone.training_inputs([scenes[0].image], [[("What is it?", "A dog"), ("Where?", "left")]])
    asked = backbone.inputs([scenes[0].image], ["What is it?"])["input_ids"][0]
    labels = batch["labels"][0]
    assert torch.equal(batch["input_ids"][0, : len(asked)], asked) and labels[len(asked)] != -100
    assert backbone.processor.tokenizer.decode(labels[labels != -100]) == "A dog<|im_end|>left<|im_end|>"
    assert backbone.answer_tokens("") == [backbone.processor.tokenizer.eos_token_id]


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE.replace("part['text']", "part['text'] | replace('A dog', 'a dog')"),
        CHAT_TEMPLATE.replace("<|im_end|>\n{% endfor", "{% if loop.last %}<|im_end|>{% endif %}\n{% endfor"),
    ],
)
def test_a_template_that_hides_an_answer_is_refused(template, scenes):
    backbone = tiny_backbone()
    backbone.answer([scenes[0].image], ["a"], 1)
    backbone.processor = deepcopy(backbone.processor)
    backbone.processor.chat_template = template
    with pytest.raises(InputError, match="does not write each answer as it is, with what ends it; set another"):
        backbone.training_inputs([scenes[0].image], [[("What is it?", "A dog"), ("Where?", "left")]])


def test_a_text_begins_once(scenes):
    """Where tokenizer and template both write the token that begins a text, as Gemma 3's do."""
    backbone = tiny_backbone()
    backbone.processor = deepcopy(backbone.processor)
    tokenizer = backbone.processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    before = backbone.inputs([scenes[0].image], ["a?"])["input_ids"]
    backbone.processor.chat_template = "<pad>" + backbone.processor.chat_template
    assert before[0, 0] == 0 and torch.equal(backbone.inputs([scenes[0].image], ["a?"])["input_ids"], before)


def test_the_pictures_mark_is_no_part_of_a_question(scenes):
    backbone, image = tiny_backbone(), [scenes[0].image]
    for talk in ([("What does <image> say?", "b")], [("a", "an <image>")]):
        with pytest.raises(InputError, match="holds <image>, which stands for the picture; leave it out"):
            backbone.training_inputs(image, [talk])
    with pytest.raises(InputError, match="holds <image>"):
        backbone.answer(image, ["<image>"])


def test_image_token_takes_a_reserved_place(tiny):
    tokenizer = tiny.processor.tokenizer
    assert tiny.processor.image_token_id == tiny.model.config.image_token_id < 17
    assert len(tokenizer) == tiny.model.get_input_embeddings().num_embeddings == 49152
    assert tiny.model.lm_head.weight.data_ptr() == tiny.model.get_input_embeddings().weight.data_ptr()
    assert tokenizer.decode(tokenizer(" a dog")["input_ids"]) == " a dog"


def test_every_name_is_one_token(tiny):
    from mmpt.scenes import NAMES

    assert all(len(tiny.processor.tokenizer(f" {name}")["input_ids"]) == 1 for name in NAMES)


def test_labels_are_the_answers_and_their_ends(tiny, scenes):
    talks = [[("What is it?", "A dog"), ("And where?", "top left")], [("How many?", "3")]]
    batch = tiny.training_inputs([s.image for s in scenes[:2]], talks)
    tokens, labels = batch["input_ids"], batch["labels"]
    decode = tiny.processor.tokenizer.decode
    assert decode(labels[0][labels[0] != -100]) == "A dog<|im_end|>top left<|im_end|>"
    assert decode(labels[1][labels[1] != -100]) == "3<|im_end|>"
    assert torch.equal(tokens[labels != -100], labels[labels != -100])
    assert (tokens == tiny.processor.image_token_id).sum(1).tolist() == [49, 49]
    assert batch["attention_mask"][:, 0].all() and not batch["attention_mask"][1, -1]


def test_prompt_of_inputs_is_the_start_of_the_training_row(tiny, scenes):
    image = [scenes[0].image]
    prompt = tiny.inputs(image, ["How many?"])["input_ids"][0]
    row = tiny.training_inputs(image, [[("How many?", "3")]])["input_ids"][0]
    assert torch.equal(row[: len(prompt)], prompt)


def test_batch_equals_single(tiny, scenes):
    questions = ["Describe the picture.", "What?", QUESTION]
    images = [s.image for s in scenes[:3]]
    together = tiny.answer(images, questions, max_new_tokens=12)
    assert together == [tiny.answer([i], [q], max_new_tokens=12)[0] for i, q in zip(images, questions)]


def test_descriptions_name_what_is_there(tiny, scenes):
    answers = tiny.answer([s.image for s in scenes], [QUESTION] * len(scenes), max_new_tokens=96)
    totals = [compare(scene, answer) for scene, answer in zip(scenes, answers)]
    assert sum(t["named"] for t in totals) / sum(t["objects"] for t in totals) > 0.8
    assert sum(t["background"] for t in totals) >= 7


def test_the_picture_matters(tiny, scenes):
    blank = make_scene(0).image.point(lambda _: 128)
    assert tiny.answer([blank], [QUESTION]) != tiny.answer([scenes[0].image], [QUESTION])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mmpt.load("no-such-model"), "'no-such-model' could not be loaded .*give \"tiny\""),
        (lambda: mmpt.load("tiny", adapter="m3pt"), "no adapter 'm3pt'; give one of .*or a folder"),
        (lambda: mmpt.load("no-such-model", quantize="2bit"), "quantize is '2bit'; give '4bit' or '8bit', or None"),
        (lambda: mmpt.load("tiny", quantize="4bit"), '"tiny" is small enough as it is; leave quantize out'),
        (lambda: mmpt.load("tiny", adapter="mpt4lm-background", quantize="4bit"), "not held in fewer bits yet"),
    ],
)
def test_wrong_names_say_what_to_give(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_an_error_without_a_word_is_told_by_its_kind(monkeypatch):
    def wordless(*args, **kwargs):
        raise OSError

    monkeypatch.setattr(AutoConfig, "from_pretrained", wordless)
    for load in (mmpt.load, lambda name: load_text_only(name, name)):
        with pytest.raises(InputError, match=r"could not be loaded \(OSError\); give"):
            load("some/model")


@pytest.mark.parametrize("supported, dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_weights_are_of_a_type_that_the_device_computes_in(monkeypatch, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert default_dtype(torch.device("cuda")) == dtype
    assert default_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.filterwarnings("error:.*autograd kernel was not registered")
@pytest.mark.parametrize("quantize, kind, bound", [("4bit", "Linear4bit", 0.3), ("8bit", "Linear8bitLt", 0.03)])
def test_quantized_backbones_are_tuned_and_asked(tmp_path, scenes, quantize, kind, bound):
    """The LLM's matrices, and only they, are held in few bits; prompts and projector are tuned in fp32 on top."""
    pytest.importorskip("bitsandbytes")
    plain = tiny_backbone(width=64)  # on some CPUs bitsandbytes errs in rows that are not whole blocks of 64
    plain.model.save_pretrained(tmp_path / "model")
    plain.processor.save_pretrained(tmp_path / "model")
    backbone = mmpt.load(tmp_path / "model", device="cpu", quantize=quantize)
    linear = {n: type(m).__name__ for n, m in backbone.model.named_modules() if isinstance(m, torch.nn.Linear)}
    llm = {n for n in linear if "language_model" in n}
    assert {linear[n] for n in llm} == {kind} and {linear[n] for n in linear.keys() - llm} == {"Linear"}

    picture, question = scenes[0].image, "What is it?"
    inputs = plain.inputs([picture], [question])
    with torch.no_grad():
        exact, coarse = plain.model(**inputs).logits, backbone.model(**inputs).logits
    assert 0 < (exact - coarse).abs().mean() < bound * exact.abs().mean()

    config = M2PTConfig(num_textual_prompts=3, num_visual_prompts=2)
    assert mmpt.parameter_report(backbone.model, config) == mmpt.parameter_report(plain.model, config)
    with pytest.raises(InputError, match="The weights are quantized, so precision 'bf16' cannot be had"):
        train(deepcopy(backbone), config, TrainConfig(tmp_path / "a", steps=1, pictures=2, precision="bf16"))
    out = train(backbone, config, TrainConfig(tmp_path / "b", steps=3, pictures=2, lr=0.01))
    assert {p.dtype for p in backbone.model.parameters() if p.requires_grad} == {torch.float32}
    tuned = backbone.answer([picture], [question], max_new_tokens=4)
    again = mmpt.load(tmp_path / "model", device="cpu", quantize=quantize, adapter=out)
    assert again.answer([picture], [question], max_new_tokens=4) == tuned


def test_quantization_asks_for_bitsandbytes(tmp_path, monkeypatch):
    plain = tiny_backbone()
    plain.model.save_pretrained(tmp_path)
    plain.processor.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match="Quantized weights need bitsandbytes: pip install bitsandbytes"):
        mmpt.load(tmp_path, quantize="4bit")


@pytest.mark.parametrize("family", ["llava_next", "idefics3", "gemma3", *NEEDED])
def test_other_families_are_loaded_tuned_and_asked(tmp_path, scenes, family):
    """With several crops a picture (but for Gemma 3), as the family's own processor cuts them."""
    made = backbone_of(family)
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "model")
    backbone = mmpt.load(tmp_path / "model", device="cpu")
    assert type(backbone.model) is type(made.model)

    images = [scenes[0].image, scenes[1].image.resize((96, 40))]
    talks = [[("What is it?", "A dog"), ("And where?", "top left")], [("How many?", "3")]]
    batch = backbone.training_inputs(images, talks)
    decode = backbone.processor.tokenizer.decode
    said = [decode(ids[ids != -100]) for ids in batch["labels"]]
    assert said == ["A dog<|im_end|>top left<|im_end|>", "3<|im_end|>"]

    config = M2PTConfig(num_textual_prompts=3, num_visual_prompts=2)
    out = train(backbone, config, TrainConfig(tmp_path / "adapter", steps=2, pictures=2, lr=0.01))
    questions = ["What is it?", "How many?"]
    tuned = backbone.answer(images, questions, max_new_tokens=4)
    assert tuned == [backbone.answer([i], [q], max_new_tokens=4)[0] for i, q in zip(images, questions)]
    spread = mmpt.load(tmp_path / "model", adapter=out, device_map="cpu")
    assert spread.answer(images, questions, max_new_tokens=4) == tuned


def test_an_adapter_refuses_a_backbone_of_equal_widths_and_another_name(tmp_path):
    backbone = tiny_backbone()
    out = train(backbone, M2PTConfig(num_textual_prompts=3), TrainConfig(tmp_path / "a", steps=1, pictures=1))
    other = tiny_backbone(seed=1)
    other.name = "lab/other"
    with pytest.raises(InputError, match="was tuned on 'tiny-random', and this backbone is 'lab/other': load it on"):
        other.add_adapter(out)
    other.name = "/models/tiny-random"
    assert other.add_adapter(out) == "a"


def test_what_is_loaded_decodes_greedily_and_ends_where_its_chat_does(tmp_path, scenes):
    made = tiny_backbone()
    made.model.generation_config.update(repetition_penalty=2.0, eos_token_id=[5])
    made.processor.save_pretrained(tmp_path)
    made.model.save_pretrained(tmp_path)
    loaded = mmpt.load(tmp_path)
    assert loaded.model.generation_config.repetition_penalty in (None, 1.0)
    assert loaded.end_ids == [loaded.processor.tokenizer.eos_token_id, 5]
    image, question = [scenes[0].image], ["What?"]
    assert loaded.answer(image, question, 6) == read(loaded, image, question).answer(6)


def test_what_a_family_cannot_do_is_told(tmp_path):
    make_host("gemma3").config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="overflows in float16; give dtype=torch.float32, or torch.bfloat16"):
        mmpt.load(tmp_path, dtype=torch.float16)
    backbone = tiny_backbone()
    backbone.processor = object.__new__(PaliGemmaProcessor)
    backbone.processor.image_token = "<image>"
    with pytest.raises(InputError, match="a PaliGemma, knows no chat: call model and processor themselves"):
        backbone._written([("What?", None)], True)


def test_folders_of_one_name_are_several_adapters(tmp_path):
    folders = []
    for name, textual in (("one", 3), ("two", 4)):
        config = M2PTConfig(num_textual_prompts=textual)
        folders.append(train(tiny_backbone(), config, TrainConfig(tmp_path / name / "final", steps=1, pictures=1)))
    backbone = tiny_backbone()
    assert [backbone.add_adapter(folder) for folder in (*folders, folders[0])] == ["final", "final-2", "final"]
    sizes = [backbone.model.peft_config[name].num_textual_prompts for name in ("final", "final-2")]
    assert sizes == [3, 4] and backbone.model.active_adapter == "final"
    image = [make_scene(0).image]
    expected = backbone.answer(image, ["What?"], 6)
    alone = tiny_backbone()
    alone.add_adapter(folders[1])
    alone.model.delete_adapter("final")
    (tmp_path / "latest").symlink_to(folders[0])
    assert alone.add_adapter(tmp_path / "latest") == "latest" and alone.answer(image, ["What?"], 6) == expected


@pytest.mark.parametrize("kind", ["shape", "file"])
@pytest.mark.parametrize("method", ["m2pt", "lora"])
@torch.no_grad()
def test_an_adapter_that_fails_to_load_leaves_nothing(tmp_path, scenes, method, kind):
    tuned = tiny_backbone()
    config = M2PTConfig(num_textual_prompts=3) if method == "m2pt" else METHODS["lora"].configure(None)
    tuned.model = get_peft_model(tuned.model, config)
    for parameter in tuned.model.parameters():  # the projector too
        if parameter.requires_grad:
            parameter.add_(0.1)
    for name in ("good", "bad"):
        tuned.model.save_pretrained(tmp_path / name)
    weights = tmp_path / "bad" / "adapter_model.safetensors"
    if kind == "file":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        tensors = load_file(weights)
        save_file({k: v[..., :-1].contiguous() for k, v in tensors.items()}, weights)

    backbone = tiny_backbone()
    inputs, modules = backbone.inputs([scenes[0].image], ["What?"]), str(backbone.model)
    plain = backbone.model(**inputs).logits
    for name in ("mine", "mine", None):
        with pytest.raises(InputError, match="does not fit the backbone|are damaged"):
            backbone.add_adapter(tmp_path / "bad", name)
        assert str(backbone.model) == modules and not hasattr(backbone.model, "peft_config")
        assert torch.equal(backbone.model(**inputs).logits, plain)
    backbone.add_adapter(tmp_path / "good", "mine")
    expected = backbone.model(**inputs).logits
    for name in ("other", "other", None):
        with pytest.raises(InputError, match="does not fit the backbone|are damaged"):
            backbone.add_adapter(tmp_path / "bad", name)
        assert list(backbone.model.peft_config) == ["mine"] == list(backbone.adapters)
        assert torch.equal(backbone.model(**inputs).logits, expected)
    with pytest.raises(InputError, match="'mine' is taken by another adapter than that in .*bad; give another"):
        backbone.add_adapter(tmp_path / "bad", "mine")


def test_a_shipped_name_and_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert adapter_folder("m2pt") == ASSETS / "adapters" / "m2pt"
    (tmp_path / "m2pt").mkdir()
    (tmp_path / "m2pt" / "adapter_config.json").write_text("{}")
    for own in ("./m2pt", tmp_path / "m2pt", Path("m2pt")):
        assert adapter_folder(own).resolve() == tmp_path / "m2pt"
    with pytest.raises(InputError, match="'m2pt' is a shipped adapter and a folder here; give ./m2pt for the folder"):
        adapter_folder("m2pt")


def test_damaged_files_are_told(tmp_path):
    out = train(tiny_backbone(), M2PTConfig(num_textual_prompts=3), TrainConfig(tmp_path / "a", steps=1, pictures=1))
    weights, settings = out / "adapter_model.safetensors", out / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"The weights in .*a are damaged \(.*\); copy or tune them again"):
        tiny_backbone().add_adapter(out)
    with pytest.raises(InputError, match="cannot be the start"):
        config = TrainConfig(tmp_path / "b", steps=1, pictures=1, start=out)
        train(tiny_backbone(), M2PTConfig(num_textual_prompts=3), config)
    weights.unlink()
    with pytest.raises(InputError, match="holds adapter_config.json, but no weights"):
        tiny_backbone().add_adapter(out)
    weights.write_bytes(b"")
    settings.write_text("{")
    with pytest.raises(InputError, match="is no JSON .* give an adapter's settings"):
        tiny_backbone().add_adapter(out)

    model = tiny_backbone().model
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="The weights of .* are damaged"):
        mmpt.load(tmp_path / "model")


def test_what_is_no_backbone_says_so(tmp_path, monkeypatch):
    for model, match in (
        ({"model_type": "llama"}, "is a 'llama', which does not answer about pictures"),
        ({"model_type": "qwen3_vl"}, r"cannot tune Qwen3VL\w+ \(qwen3_vl\): inner layers of its vision tower"),
        ({"model_type": "blip-2"}, "tunes models of the families LLaVA, LLaVA-NeXT, .* holds none"),
        ({"model_type": "no-such-type"}, "could not be loaded .*no-such-type"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(model))
        with pytest.raises(InputError, match=match):
            mmpt.load(tmp_path)
    with pytest.raises(InputError, match="device is 'cpu' and device_map 'auto'; give one of them"):
        mmpt.load("lab/model", device="cpu", device_map="auto")
    with pytest.raises(InputError, match='"tiny" is small enough as it is; leave device_map out'):
        mmpt.load("tiny", device_map="auto")


@pytest.mark.parametrize(
    "kind, match",
    [
        (GatedRepoError, "'lab/model' is gated: accept its terms at https://huggingface.co/lab/model, then sign in"),
        (RepositoryNotFoundError, "The hub knows no model 'lab/model', or it is private"),
    ],
)
def test_what_the_hub_refuses_is_said(monkeypatch, kind, match):
    """As transformers hands it on: an OSError whose cause is the hub's own error."""

    def refused(*args, **kwargs):
        raise OSError("You are trying to access") from kind.__new__(kind)

    monkeypatch.setattr("mmpt.loading.AutoConfig.from_pretrained", refused)
    with pytest.raises(InputError, match=match):
        mmpt.load("lab/model")


def test_memory_is_estimated_before_weights_are_fetched(tmp_path, monkeypatch):
    """There is nothing but a configuration here, so nothing else can have been read."""
    model = make_host("llava_next")
    model.config.save_pretrained(tmp_path)
    plain = weights_size(model, torch.float32)
    assert plain == 4 * model.num_parameters() == 2 * weights_size(model, torch.bfloat16)
    linear = sum(m.weight.numel() for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear))
    assert weights_size(model, torch.float32, "8bit") == plain - 3 * linear
    assert weights_size(model, torch.float32, "4bit") == plain - 3.5 * linear

    memory = {0: plain, "cpu": weights_size(model, torch.float32, "4bit")}
    monkeypatch.setattr("mmpt.loading.get_max_memory", lambda: memory)
    monkeypatch.setattr("mmpt.loading._free", lambda device: memory[device.type])
    ways = r'give quantize="4bit" \(0.0 GiB\) or device_map="auto"\.$'
    with pytest.raises(InputError, match=f"take 0.0 GiB in float32, and 0.0 GiB are free on cpu: {ways}"):
        mmpt.load(tmp_path, device="cpu")
    memory.clear()
    memory["cpu"] = 1000
    for options, where in (({"device": "cpu"}, "cpu"), ({"device_map": "auto"}, "all devices together")):
        with pytest.raises(InputError, match=f"are free on {where}: take a smaller model"):
            mmpt.load(tmp_path, **options, quantize="4bit")
    memory["cpu"] = plain
    with pytest.raises(InputError, match="could not be loaded"):  # it fits, but the weights are missing
        mmpt.load(tmp_path, device="cpu")


def test_a_folder_may_have_a_name_that_torch_needs(tmp_path):
    backbone = tiny_backbone()
    config = mmpt.M2PTConfig(num_textual_prompts=2, num_visual_prompts=2)
    out = train(tiny_backbone(), config, TrainConfig(tmp_path / "train", steps=1, pictures=1, turns=1))
    assert backbone.add_adapter(out) == "train-2" == backbone.add_adapter(out)
    with pytest.raises(InputError, match="No adapter can be called 'eval'"):
        backbone.add_adapter(out, "eval")


def test_adapters_of_two_methods_do_not_share_a_backbone(tmp_path):
    backbone, size = tiny_backbone(), {"steps": 1, "pictures": 1, "turns": 1}
    lora = train(tiny_backbone(), LoraConfig(target_modules=["q_proj"]), TrainConfig(tmp_path / "a", **size))
    m2pt = train(tiny_backbone(), mmpt.M2PTConfig(), TrainConfig(tmp_path / "b", **size))
    backbone.add_adapter(m2pt)
    with pytest.raises(InputError, match="holds an adapter of LORA, and the backbone carries one of M2PT; PEFT takes"):
        backbone.add_adapter(lora)
    (lora / "adapter_config.json").write_text("[]")
    with pytest.raises(InputError, match="adapter_config.json is no JSON object; give an adapter's settings"):
        backbone.add_adapter(lora)
