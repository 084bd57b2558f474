"""Backbones: a LLaVA-class model and its stock processor as one object. `load("tiny")` is the embedded one.

Notation: B rows, T tokens.
"""

import json
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    BitsAndBytesConfig,
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

import mmpt.m2pt  # noqa: F401  (registers the method, so that its adapters load)
from mmpt.errors import InputError
from mmpt.tiny.language import IMAGE_TOKEN, language_model_folder
from mmpt.tiny.vision import IMAGE_SIZE, MEAN, PATCH_SIZE, STD, vision_config

ASSETS = Path(__file__).parent.parent / "assets"
QUANTIZED = {"4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "8bit": {"load_in_8bit": True}}

# SmolLM2's own format without its system turn, which would cost 20 tokens a question.
CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass
class Backbone:
    """A model, its processor, and the few things everybody does with them."""

    name: str
    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin

    def add_adapter(self, adapter: str | Path) -> str:
        """Load a shipped adapter ("m2pt", "m2pt-carry") or an adapter's folder; it becomes the active one.

        Raises:
            InputError: no such adapter, or one made for another backbone.
        """
        folder = adapter_folder(adapter)
        name = folder.name.replace(".", "_")
        if isinstance(self.model, PeftModel):
            if name not in self.model.peft_config:
                self._loading(self.model.load_adapter, folder, adapter_name=name)
            self.model.set_adapter(name)
        else:
            self.model = self._loading(PeftModel.from_pretrained, self.model, folder, adapter_name=name)
        self.model.eval()
        return name

    def _loading(self, load, *args, **kwargs):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT's, of its words for transformers
                return load(*args, **kwargs)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"The adapter in {args[-1]} does not fit the backbone {self.name}: {reason} "
                "Load it on the backbone that it was tuned on."
            ) from error

    @contextmanager
    def use(self, adapter: str | None):
        """Within the context the named, already added adapter is active; with None the untouched model answers."""
        if not isinstance(self.model, PeftModel):
            if adapter is not None:
                raise InputError(f"No adapter is loaded, so {adapter!r} cannot be used; call add_adapter first.")
            yield self
            return
        before = self.model.active_adapter
        if adapter is not None:
            if adapter not in self.model.peft_config:
                loaded = ", ".join(self.model.peft_config)
                raise InputError(f"The adapter {adapter!r} is not loaded (loaded: {loaded}); call add_adapter first.")
            self.model.set_adapter(adapter)
        try:
            with self.model.disable_adapter() if adapter is None else nullcontext():
                yield self
        finally:
            self.model.set_adapter(before)

    def _chat(self, turns, add_generation_prompt):
        messages = []
        for i, (question, answer) in enumerate(turns):
            content = [{"type": "image"}] * (i == 0) + [{"type": "text", "text": question}]
            messages.append({"role": "user", "content": content})
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)

    def question_text(self, question: str) -> str:
        """A question on a picture in the backbone's chat format, up to where the answer begins."""
        return self._chat([(question, None)], True)

    def inputs(self, images, questions) -> BatchFeature:
        """One picture and one question a row → input_ids, attention_mask (B, T), left padded, and pixel_values."""
        texts = [self.question_text(question) for question in questions]
        batch = self.processor(images=list(images), text=texts, padding=True, padding_side="left", return_tensors="pt")
        return batch.to(self.model.device)

    def training_inputs(self, images, conversations) -> dict[str, torch.Tensor]:
        """One picture and one conversation, a list of (question, answer), a row; right padded.

        Returns input_ids, attention_mask, labels (B, T) and pixel_values. Labels are -100 but on each answer and the
        token that ends it.
        """
        texts = [self._chat(turns, False) for turns in conversations]
        batch = self.processor(
            images=list(images), text=texts, padding=True, padding_side="right", return_tensors="pt"
        )
        labels = torch.full_like(batch["input_ids"], -100)
        tokenizer = self.processor.tokenizer
        for row, turns in enumerate(conversations):
            n_image = batch["input_ids"][row].tolist().count(self.processor.image_token_id)
            for i, (question, answer) in enumerate(turns):
                prefix = self._chat([*turns[:i], (question, None)], True)
                prefix = prefix.replace(self.processor.image_token, "", 1)
                start = n_image + len(tokenizer(prefix)["input_ids"])  # with the token that begins a text, if any
                end = start + len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1
                labels[row, start:end] = batch["input_ids"][row, start:end]
        return dict(batch.to(self.model.device)) | {"labels": labels.to(self.model.device)}

    @torch.inference_mode()
    def answer(self, images, questions, max_new_tokens: int = 64) -> list[str]:
        """Greedy answers, one a row."""
        batch = self.inputs(images, questions)
        tokens = self.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        answers = tokens[:, batch["input_ids"].shape[1] :]
        return [a.strip() for a in self.processor.batch_decode(answers, skip_special_tokens=True)]


def adapter_folder(adapter: str | Path) -> Path:
    """Folder of a shipped adapter's name or of a path."""
    for folder in (ASSETS / "adapters" / adapter, Path(adapter)):
        if (folder / "adapter_config.json").is_file():
            return folder
    shipped = sorted(p.parent.name for p in ASSETS.glob("adapters/*/adapter_config.json"))
    raise InputError(
        f"There is no adapter {str(adapter)!r}; give one of {', '.join(shipped) or '(none is shipped)'}, or a folder "
        "that holds adapter_config.json."
    )


def method_of(adapter: str | Path) -> str | None:
    """PEFT's name of an adapter's method, such as "M2PT" or "LORA"."""
    return json.loads((adapter_folder(adapter) / "adapter_config.json").read_text()).get("peft_type")


def load(name: str | Path = "tiny", *, adapter=None, device=None, dtype=None, quantize=None) -> Backbone:
    """Load a backbone: "tiny" (embedded), a folder, or a LLaVA on the hub such as "llava-hf/llava-1.5-7b-hf".

    Args:
        adapter: a shipped adapter's name or a folder, loaded and active. One of MPT4LM gets its text-only LLM
            (`mmpt.mpt4lm.backbone.load`).
        device: where the model goes; by default a GPU if there is one.
        dtype: weights' type; by default float32 on a CPU, bfloat16 on a GPU.
        quantize: "4bit" (NF4) or "8bit": the LLM's matrices are held in so many bits by bitsandbytes and computed with
            in `dtype`; the vision tower, the projector and the output head stay as they are.

    Raises:
        InputError: nothing of that name can be loaded.
    """
    if quantize not in (None, *QUANTIZED):
        raise InputError(f"quantize is {quantize!r}; give {' or '.join(map(repr, QUANTIZED))}, or None.")
    if adapter is not None and method_of(adapter) == "MPT4LM":
        from mmpt.mpt4lm.backbone import load as load_text_only  # which stands on this module

        return load_text_only(name, adapter=adapter, device=device, dtype=dtype, quantize=quantize)
    if quantize and str(name) == "tiny":
        raise InputError('"tiny" is small enough as it is; leave quantize out.')
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    if quantize:
        few_bits = {"quantization_config": _quantized(quantize, dtype), "device_map": device}
        backbone = _load_pretrained(str(name), dtype, **few_bits)
    else:
        backbone = load_tiny() if str(name) == "tiny" else _load_pretrained(str(name), dtype)
        backbone.model.to(device, dtype)
    backbone.model.eval()
    if adapter is not None:
        backbone.add_adapter(adapter)
    return backbone


def load_tiny(vision_weights: dict[str, torch.Tensor] | None = None) -> Backbone:
    """SmolLM2 with our vision tower and projector, fp32, on the CPU.

    `vision_weights` (names as in `assets/tiny/model.safetensors`) replace the shipped ones while those are trained.
    """
    folder = language_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=LlamaConfig.from_pretrained(folder),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    weights = {
        ("lm_head.weight" if k == "lm_head.weight" else f"model.language_model.{k.removeprefix('model.')}"): v
        for k, v in load_file(folder / "model.safetensors").items()
    }
    if vision_weights is None:
        vision_weights = load_file(ASSETS / "tiny" / "model.safetensors")
    weights |= {f"model.{k}": v.float() for k, v in vision_weights.items()}
    model = LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights)
    generation = json.loads((folder / "generation_config.json").read_text())
    model.generation_config.update(**{k: v for k, v in generation.items() if k.endswith("token_id")})
    images = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return Backbone("tiny", model, processor)


def _quantized(kind, dtype):
    apart = [".*vision_tower", ".*multi_modal_projector", "lm_head"]
    return BitsAndBytesConfig(**QUANTIZED[kind], bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=apart)


def _load_pretrained(name, dtype, **options):
    try:
        model = LlavaForConditionalGeneration.from_pretrained(name, dtype=dtype, **options)
        return Backbone(name, model, AutoProcessor.from_pretrained(name))
    except ImportError as error:
        raise InputError("Quantized weights need bitsandbytes: pip install bitsandbytes.") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f'The backbone {name!r} could not be loaded ({str(error).splitlines()[0]}); give "tiny", a folder with '
            "a LLaVA model and its processor, or a hub id while the hub can be reached."
        ) from error
