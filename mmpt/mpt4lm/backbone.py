"""Text-only LLMs with a vision tower beside them as backbones: tuned and asked like any other, by `mmpt.train` and co.

Notation: B rows, T tokens.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    CLIPVisionModel,
    SiglipVisionModel,
    T5ForConditionalGeneration,
    VisionTextDualEncoderProcessor,
)

from mmpt.backbones import Backbone, load_tiny, tiny_image_processor
from mmpt.errors import InputError, first_line
from mmpt.files import ASSETS
from mmpt.loading import decode_greedily, default_dtype
from mmpt.mpt4lm.host import VisionBesideLM
from mmpt.mpt4lm.reading import read_text
from mmpt.reading import Reading
from mmpt.tiny.vision import vision_config

# For LLMs that were not taught to chat. The picture has no place in the text.
PLAIN_TEMPLATE = "Question: {{ messages[0]['content'] }}\nAnswer:"
_TOWERS = {  # of a model of picture and text the tower alone; which of its features are the picture's
    "clip": (CLIPVisionModel, {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}),
    "siglip": (SiglipVisionModel, {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
}


@dataclass
class TextBackbone(Backbone):
    """A `VisionBesideLM`, its processor, and the few things everybody does with them."""

    @property
    def _ending(self):
        return self.processor.tokenizer.eos_token, ""

    def conversation(self, turns, add_generation_prompt):
        """As in `Chat`, of its questions alone."""
        messages = [{"role": "user", "content": question} for question, _ in turns]
        return self.processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)

    def answer_tokens(self, answer: str) -> list[int]:
        """The token ids of an answer, with the one that ends it."""
        tokenizer = self.processor.tokenizer
        return [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    def training_inputs(self, images, conversations) -> dict[str, torch.Tensor]:
        """One picture and one conversation, a list of (question, answer), each; every turn becomes a row.

        Visual prompts stand before the text and are made from the question, so later questions on the same picture
        cannot share them: they would tell of earlier answers.

        Returns `inputs` with labels (B, T), -100 but on the answer and the token that ends it. Decoder-only: answers
        follow the question in input_ids, and question_mask leaves them out. Encoder-decoder: labels and
        decoder_input_ids are the answer's alone.
        """
        rows = [(image, *turn) for image, turns in zip(images, conversations) for turn in turns]
        images, questions, answers = zip(*rows)
        batch, tokenizer = self.inputs(images, questions), self.processor.tokenizer
        tokens = {"input_ids": [self.answer_tokens(answer) for answer in answers]}
        said = tokenizer.pad(tokens, padding_side="right", return_tensors="pt").to(self.model.device)
        labels = said["input_ids"].masked_fill(said["attention_mask"] == 0, -100)
        if self.model.config.is_encoder_decoder:
            return dict(batch) | {
                "labels": labels,
                "decoder_input_ids": self.model.prepare_decoder_input_ids_from_labels(labels),
            }
        asked = batch["input_ids"], batch["attention_mask"]
        return dict(batch) | {
            "input_ids": torch.cat([asked[0], said["input_ids"]], 1),
            "attention_mask": torch.cat([asked[1], said["attention_mask"]], 1),
            "question_mask": asked[1],
            "labels": torch.cat([torch.full_like(asked[0], -100), labels], 1),
        }

    def read(self, images, questions) -> Reading:
        """One picture and one question a row, read; what `mmpt.reading.read` gives for this kind of backbone."""
        return read_text(self, images, questions)


def without_projector(backbone: Backbone) -> TextBackbone:
    """The LLM and the vision tower of a LLaVA, the same tensors, without what joins them."""
    llava, config, processor = backbone.model, backbone.model.config, backbone.processor
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(deepcopy(config.text_config))
    setattr(llm, llm.base_model_prefix, llava.model.language_model)
    llm.set_output_embeddings(llava.lm_head)
    llm.generation_config = llava.generation_config
    model = VisionBesideLM.of(
        llava.model.vision_tower,
        llm.train(llava.training),
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    )
    return _backbone(
        f"{backbone.name}-text", model, processor.image_processor, processor.tokenizer, processor.chat_template
    )


def load_tiny_t5() -> TextBackbone:
    """The T5 that comes along (`mmpt.tiny.t5`) beside "tiny"'s vision tower, fp32, on the CPU."""
    weights = load_file(ASSETS / "tiny" / "model.safetensors")
    weights = {k.removeprefix("vision_tower."): v.float() for k, v in weights.items() if k.startswith("vision_tower.")}
    tower = CLIPVisionModel.from_pretrained(None, config=vision_config(), state_dict=weights)
    folder = ASSETS / "tiny-t5"
    llm = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = VisionBesideLM.of(tower, llm, vision_feature_layer=-1, vision_feature_select_strategy="default")
    return _backbone("tiny-t5", model, tiny_image_processor(), AutoTokenizer.from_pretrained(folder), PLAIN_TEMPLATE)


def load(
    name: str | Path = "tiny",
    tower: str | Path | None = None,
    *,
    adapter=None,
    device=None,
    dtype=None,
    quantize=None,
) -> TextBackbone:
    """Load a text-only LLM and a vision tower: "tiny" or "tiny-t5" (embedded), or a folder or hub id of each.

    Args:
        name: "tiny" (SmolLM2), "tiny-t5", or an LLM of the Llama or T5 family, such as "google/flan-t5-xl".
        tower: a CLIP or SigLIP, such as "openai/clip-vit-large-patch14"; the embedded ones have their own.
        adapter: an adapter's folder, loaded and active.
        device: where the model goes; by default a GPU if there is one.
        dtype: weights' type; by default float32 on a CPU, on a GPU bfloat16, or float16 if it has no bfloat16 units.
        quantize: as in `mmpt.load`; refused here.

    Raises:
        InputError: nothing of that name can be loaded.
    """
    if quantize:
        raise InputError("A text-only LLM under MPT4LM is not held in fewer bits yet; leave quantize out.")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or default_dtype(device)
    if str(name) == "tiny":
        backbone = without_projector(load_tiny())
        backbone.model.to(dtype)
    elif str(name) == "tiny-t5":
        backbone = load_tiny_t5()
        backbone.model.to(dtype)
    elif tower is None:
        raise InputError(
            f"The LLM {str(name)!r} has no eyes; give tower, a CLIP or SigLIP, to mmpt.mpt4lm.backbone.load."
        )
    else:
        # Each weight has its type already: T5's widest layers stay in fp32, since they overflow in float16.
        backbone = _load_pretrained(str(name), str(tower), dtype)
    backbone.model.to(device).eval()
    if adapter is not None:
        backbone.add_adapter(adapter)
    return backbone


def _load_pretrained(name, tower, dtype):
    try:
        seeing = AutoConfig.from_pretrained(tower)
        kind, features = _TOWERS.get(seeing.model_type.removesuffix("_vision_model"), (AutoModel, {}))
        reading = AutoConfig.from_pretrained(name)
        llm = AutoModelForSeq2SeqLM if reading.is_encoder_decoder else AutoModelForCausalLM
        llm = llm.from_pretrained(name, dtype=dtype)
        decode_greedily(llm)
        model = VisionBesideLM.of(kind.from_pretrained(tower, dtype=dtype), llm, **features)
        tokenizer = AutoTokenizer.from_pretrained(name)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return _backbone(name, model, AutoImageProcessor.from_pretrained(tower), tokenizer, PLAIN_TEMPLATE)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise InputError(
            f"The LLM {name!r} with the tower {tower!r} could not be loaded ({first_line(error)}); give "
            "folders, or hub ids while the hub can be reached."
        ) from error


def _backbone(name, model, images, tokenizer, chat_template):
    processor = VisionTextDualEncoderProcessor(images, tokenizer)
    processor.chat_template = chat_template
    return TextBackbone(name, model, processor)
