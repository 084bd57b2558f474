"""A tiny random LLaVA with a processor, for tests: `import helpers` (pytest's pythonpath holds tests/)."""

from dataclasses import replace
from functools import cache

import torch
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmpt.backbones import CHAT_TEMPLATE, Backbone
from mmpt.explain.targets import token_log_probabilities
from mmpt.m2pt import M2PTConfig
from mmpt.methods import METHODS
from mmpt.mpt4lm.backbone import without_projector

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<image>")


@cache
def byte_tokenizer(*special):
    """Byte-level, one token a byte, no merges: the special tokens, of which the third ends a text, and 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate((*special, *alphabet))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=special[2])


def backbone_for(method: str, seed: int = 0) -> Backbone:
    """The tiny random model as a method of `mmpt.methods` takes it."""
    backbone = tiny_backbone(seed)
    return without_projector(backbone) if method == "mpt4lm" else backbone


def config_for(method: str, backbone: Backbone):
    """The method's configuration, where it must be smaller for so small a model."""
    config = METHODS[method].configure(backbone.processor.tokenizer)
    return replace(config, cross_attention_width=18) if method == "mpt4lm" else config


def tiny_backbone(seed: int = 0, width: int = 48) -> Backbone:
    """CLIP (2 layers, d 32, 16 patches) and Llama (2 layers, d `width`, 4 heads on 2), vocabulary 260, random."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(*SPECIAL)
    size = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, hidden_size=32, intermediate_size=40, image_size=32, patch_size=8),
        text_config=LlamaConfig(
            **size, hidden_size=width, intermediate_size=64, num_key_value_heads=2, vocab_size=len(tokenizer),
            max_position_embeddings=2048, initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    images = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return Backbone("tiny-random", LlavaForConditionalGeneration(config).eval(), processor)


def score(backbone, images, questions, targets) -> torch.Tensor:
    """(B,) the targets' values, without a `Case`."""
    rows = [(image, question, a) for image, question, t in zip(images, questions, targets) for a in t.answers]
    logps = iter(token_log_probabilities(backbone, *zip(*rows)))
    return torch.stack([t.score([next(logps) for _ in t.answers]) for t in targets])


def tuned_backbone(**fields) -> Backbone:
    """`tiny_backbone` under M²PT with random prompts, 3 textual and 2 visual ones unless `fields` say otherwise."""
    torch.manual_seed(1)
    backbone = tiny_backbone()
    config = M2PTConfig(**{"num_textual_prompts": 3, "num_visual_prompts": 2} | fields)
    backbone.model = get_peft_model(backbone.model, config).eval()
    for name, parameter in backbone.model.named_parameters():
        if "prompts" in name:
            torch.nn.init.normal_(parameter)
    return backbone
