"""A model of LLaVA-1.5's size with random weights, to time where the real ones cannot be had.

`python -m mmpt.sized 7b FOLDER` writes it as bfloat16, with the embedded model's tokenizer; then
`python -m mmpt bench --backbone FOLDER` times it. What it answers means nothing.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)

from mmpt import console
from mmpt.backbones import load_tiny
from mmpt.errors import InputError

VISION = dict(  # CLIP ViT-L/14 at 336
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
    patch_size=14, projection_dim=768,
)  # fmt: skip
LLM = {  # Llama 2's
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "13b": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
}


def write(size: str, folder: str | Path, device: str | torch.device = "cpu") -> Path:
    """Model and processor into `folder`, 14 GB for "7b"; the weights are drawn on `device`.

    Its vocabulary is SmolLM2's 49,152 words, where LLaVA-1.5 has 32,064: 0.14 billion more parameters in the 7B.

    Raises:
        InputError: no such size, or the folder cannot be written.
    """
    if size not in LLM:
        raise InputError(f"There is no size {size!r}; choose one of {', '.join(LLM)}.")
    processor = load_tiny().processor
    tokenizer, side = processor.tokenizer, {"height": VISION["image_size"], "width": VISION["image_size"]}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**LLM[size], vocab_size=len(tokenizer), max_position_embeddings=4096, **special),
        image_token_index=processor.image_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    images = CLIPImageProcessorPil(size=side, crop_size=side)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
    )
    try:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", error)
        raise InputError(f"{folder} cannot be written ({reason}); give another folder.") from error
    return Path(folder)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="mmpt.sized", description="Write a model of random weights, to time.")
    parser.add_argument("size", choices=LLM)
    parser.add_argument("out", metavar="FOLDER")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return console.run("mmpt.sized", lambda: print(write(args.size, args.out, device)))


if __name__ == "__main__":
    sys.exit(main())
