"""Backbones: a multimodal LLM and its stock processor as one object. `load("tiny")` is the embedded one.

Notation: B rows, T tokens.
"""

import json
import os
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BatchFeature,
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

import mmpt.m2pt  # noqa: F401  (registers the method, so that its adapters load)
from mmpt.adapters import adapter_folder, adapter_settings, free_name, may_be_called, method_of, taken_off
from mmpt.chat import Chat
from mmpt.errors import InputError, first_line
from mmpt.files import ASSETS
from mmpt.loading import BITS, check_in_memory, default_dtype, load_pretrained
from mmpt.tiny.language import IMAGE_TOKEN, language_model_folder
from mmpt.tiny.vision import IMAGE_SIZE, MEAN, PATCH_SIZE, STD, vision_config

# SmolLM2's own format without its system turn, which would cost 20 tokens a question.
CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass
class Backbone(Chat):
    """A model, its processor, and the few things everybody does with them.

    Attributes:
        adapters: the folders of those that were added, by name.
        quantize: as in `load`.
    """

    name: str
    model: PreTrainedModel | PeftModel
    processor: ProcessorMixin
    adapters: dict[str, Path] = field(default_factory=dict, repr=False)
    quantize: str | None = None

    def add_adapter(self, adapter: str | Path, name: str | None = None) -> str:
        """Load a shipped adapter ("m2pt", "m2pt-carry") or an adapter's folder; it becomes the active one.

        Returns its name: the given one, or the folder's, numbered where another folder's adapter has that already.

        Raises:
            InputError: no such adapter, one made for another backbone or of another method than those loaded, a name
                that another adapter or torch has, or weights kept off the devices; then the model is as it was.
        """
        folder = Path(os.path.abspath(adapter_folder(adapter)))  # a link keeps its own name
        self.check_home(folder)
        loaded = self.model.peft_config if isinstance(self.model, PeftModel) else {}
        name = name or free_name(folder, {n: self.adapters.get(n) for n in loaded})
        if not may_be_called(name):
            raise InputError(f"No adapter can be called {name!r}, by torch's rules; give another name, without dots.")
        if name not in loaded:
            self._check_room(folder)
            self._load(folder, name)
        elif self.adapters.get(name) != folder:
            raise InputError(f"The name {name!r} is taken by another adapter than that in {folder}; give another.")
        self.adapters[name] = folder
        self.model.set_adapter(name)
        self.model.eval()
        return name

    def check_home(self, folder: Path) -> None:
        """InputError if the adapter in `folder` is another backbone's: widths and depths can agree by chance, so the
        name must too; the model's own part of it, not the path."""
        home = adapter_settings(folder).get("base_model_name_or_path")
        if home and Path(str(home)).name != Path(self.name).name:
            raise InputError(
                f"The adapter in {folder} was tuned on {home!r}, and this backbone is {self.name!r}: load it on the "
                "backbone that it was tuned on. Where that only goes by another name here, write the name into the "
                "adapter's adapter_config.json, base_model_name_or_path."
            )

    def _check_room(self, folder):
        """InputError if what the model is, or carries already, leaves no place for the adapter in `folder`."""
        check_in_memory(self.model)
        method = adapter_settings(folder).get("peft_type")
        carried = (
            {c.peft_type.value for c in self.model.peft_config.values()} if isinstance(self.model, PeftModel) else {}
        )
        if carried and method not in carried:
            raise InputError(
                f"{folder} holds an adapter of {method}, and the backbone carries one of {carried.pop()}; PEFT takes "
                "one method at a time: load the backbone afresh."
            )

    def _load(self, folder, name):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT's, of its words for transformers
                if isinstance(self.model, PeftModel):
                    self.model.load_adapter(folder, adapter_name=name)
                else:
                    self.model = PeftModel.from_pretrained(self.model, folder, adapter_name=name)
        except Exception as error:
            self._take_off(folder, name)
            if isinstance(error, SafetensorError):
                raise InputError(f"The weights in {folder} are damaged ({error}); copy or tune them again.") from error
            if not isinstance(error, (RuntimeError, ValueError, KeyError, TypeError)):
                raise
            raise InputError(
                f"The adapter in {folder} does not fit the backbone {self.name}: {first_line(error)} "
                "Load it on the backbone that it was tuned on."
            ) from error

    def _take_off(self, folder, name):
        """PEFT puts an adapter on, with random weights, before it reads its own: one that failed must not stay."""
        if isinstance(self.model, PeftModel):
            if name in self.model.peft_config:
                self.model.delete_adapter(name)
            return
        if any(isinstance(module, BaseTunerLayer) for module in self.model.modules()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of wrapping it for a second time
                taken_off(get_peft_model(self.model, PeftConfig.from_pretrained(folder), name))
        vars(self.model).pop("peft_config", None)

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

    @property
    def end_ids(self) -> list[int]:
        """The ids of tokens at which an answer is over: what ends one in a chat, and what the model's settings say."""
        known = self.model.generation_config.eos_token_id
        known = known if isinstance(known, list) else [] if known is None else [known]
        return list(dict.fromkeys([self.processor.tokenizer.convert_tokens_to_ids(self._ending[0]), *known]))

    def inputs(self, images, questions) -> BatchFeature:
        """One picture and one question a row → input_ids, attention_mask (B, T), left padded, and pixel_values."""
        texts = [self.question_text(question) for question in questions]
        return self._processed(images, texts, "left").to(self.model.device)

    def _processed(self, images, texts, side):
        images = [[image] for image in images]  # a list a row, which some processors insist on
        try:
            return self.processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")
        except ValueError as error:  # such as a picture too long and thin for Qwen
            raise InputError(f"The processor of {self.name!r} cannot take this picture and text: {error}") from error

    def training_inputs(self, images, conversations) -> dict[str, torch.Tensor]:
        """One picture and one conversation, a list of (question, answer), a row; right padded.

        Returns input_ids, attention_mask, labels (B, T) and pixel_values. Labels are -100 but on each answer and the
        token that ends it.
        """
        texts, spans = map(list, zip(*map(self._spans, conversations)))
        batch = self._processed(images, texts, "right")
        labels = torch.full_like(batch["input_ids"], -100)
        for row, text in enumerate(texts):
            places = self.processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            # The processor puts many tokens in the place of the picture's mark; the text behind it is as written.
            added = int(batch["attention_mask"][row].sum()) - len(places)
            for i, (a, b) in enumerate(places, added):
                if any(a < end and b > start for start, end in spans[row]):
                    labels[row, i] = batch["input_ids"][row, i]
        return dict(batch.to(self.model.device)) | {"labels": labels.to(self.model.device)}

    @torch.inference_mode()
    def answer(self, images, questions, max_new_tokens: int = 64) -> list[str]:
        """Greedy answers, one a row."""
        batch = self.inputs(images, questions)
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": self.end_ids}
        tokens = self.model.generate(**batch, **options)
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, batch["input_ids"].shape[1] :]
        return [a.strip() for a in self.processor.batch_decode(tokens, skip_special_tokens=True)]


def load(
    name: str | Path = "tiny", *, adapter=None, device=None, dtype=None, quantize=None, device_map=None
) -> Backbone:
    """Load a backbone: "tiny" (embedded), a folder, or a model on the hub such as "llava-hf/llava-1.5-7b-hf".

    The model may be of any family that M²PT tunes (mmpt/m2pt/README.md).

    Args:
        adapter: a shipped adapter's name or a folder, loaded and active. One of MPT4LM gets its text-only LLM
            (`mmpt.mpt4lm.backbone.load`).
        device: where the model goes; by default a GPU if there is one.
        dtype: weights' type; by default float32 on a CPU, on a GPU bfloat16, or float16 if it has no bfloat16 units.
        quantize: "4bit" (NF4) or "8bit": the LLM's matrices are held in so many bits by bitsandbytes and computed with
            in `dtype`; the vision tower, the projector and the output head stay as they are.
        device_map: transformers' own, such as "auto", to spread a model over several devices; in the place of device.

    Raises:
        InputError: nothing of that name can be loaded, or not into the free memory.
    """
    if quantize not in (None, *BITS):
        raise InputError(f"quantize is {quantize!r}; give {' or '.join(map(repr, BITS))}, or None.")
    if device_map is not None and device is not None:
        raise InputError(f"device is {str(device)!r} and device_map {device_map!r}; give one of them.")
    if adapter is not None and method_of(adapter) == "MPT4LM":
        from mmpt.mpt4lm.backbone import load as load_text_only  # which stands on this module

        if device_map is not None:
            raise InputError("Backbones of MPT4LM go to one device; give device in the place of device_map.")
        return load_text_only(name, adapter=adapter, device=device, dtype=dtype, quantize=quantize)
    if str(name) == "tiny-t5":
        raise InputError(
            'The LLM "tiny-t5" reads words only; give an adapter of MPT4LM, such as "mpt4lm-t5", or load it with '
            "mmpt.mpt4lm.backbone.load."
        )
    if (quantize or device_map is not None) and str(name) == "tiny":
        raise InputError(f'"tiny" is small enough as it is; leave {"quantize" if quantize else "device_map"} out.')
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or default_dtype(device)
    if str(name) == "tiny":
        backbone = load_tiny()
        backbone.model.to(device, dtype)
    else:
        loaded = load_pretrained(str(name), dtype, device, quantize, device_map)
        backbone = Backbone(str(name), *loaded, quantize=quantize)
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
    processor = LlavaProcessor(
        tiny_image_processor(),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return Backbone("tiny", model, processor)


def tiny_image_processor() -> CLIPImageProcessorPil:
    """What "tiny"'s vision tower is shown."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
