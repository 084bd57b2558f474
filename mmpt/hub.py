"""What was tuned goes to the hub: the model card of a run, filled from its `training.json`, and the upload."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError  # of whichever client it has

from mmpt.adapters import adapter_folder
from mmpt.errors import InputError, first_line
from mmpt.evaluate import render
from mmpt.files import read_text

_TINY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_REPO = r"[\w.-]+/[\w.-]+"
_UPLOADED = (  # what a run writes, but for its records; else what lies beside it, perhaps the data, would go too
    "adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json", "model*.safetensors",
    "model.safetensors.index.json", "*processor_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "chat_template.*", "additional_chat_templates/*",
)  # fmt: skip
_UNMEASURED = "Nothing but the loss. `python -m mmpt evaluate --suite mini` measures answers."
_ONLINE = "check the name, the network and the login (hf auth login)"
_CITATIONS = {
    "M2PT": """@inproceedings{wang2024m2pt,
  title = {{M$^2$PT}: Multimodal Prompt Tuning for Zero-shot Instruction Learning},
  author = {Wang, Taowen and Liu, Yiyang and Liang, James Chenhao and Zhao, Junhan and Cui, Yiming and Mao, Yuning and
            Nie, Shaoliang and Liu, Jiahao and Feng, Fuli and Xu, Zenglin and Han, Cheng and Huang, Lifu and
            Wang, Qifan and Liu, Dongfang},
  booktitle = {Proceedings of the 2024 Conference on Empirical Methods in Natural Language Processing},
  year = {2024},
  url = {https://arxiv.org/abs/2409.15657}
}""",
    "MPT4LM": """@inproceedings{miao2024mpt4lm,
  title = {{MPT4LM}: Multi-Modal Prompt Tuning Makes Pre-Trained Large Language Models Better Vision-Language
           Learners},
  author = {Miao, Yongzhu and Tang, Jintao and Li, Shasha and Wang, Ting},
  booktitle = {ECAI 2024},
  year = {2024},
  doi = {10.3233/FAIA240515}
}""",
}
_CARD = """# {method} on {backbone}

{what} of `{backbone}`, tuned with mmpt: {questions:,} questions on pictures in {steps:,} steps.

| | |
|---|---|
| method | {method} |
| backbone | {backbone} |
| tuned on | {data} |
| tuned parameters | {tuned_parameters:,} |
| loss at the end | {final_loss:.3f}, the mean of the last {last} steps |
| time | {seconds:,.0f} s on {processes} × {device} |
| memory | {peak_mib:,} MiB at most |
| versions | {versions} |

## Use

```python
{load}
print(backbone.answer([PIL.Image.open("picture.png").convert("RGB")], ["What is on the left?"]))
```

## What was measured

{measured}

## Settings

```json
{settings}
```

## Licence

{licence}

## Citation

{citation}
"""


def card(record: dict, repo: str | None = None, measured: Sequence[str] = (), licence: str | None = None) -> str:
    """The README.md of what was tuned: metadata of the hub, how the weights came about, how to load them.

    Args:
        record: what `training.json` says of the run. Folders' names stay out of the card.
        repo: OWNER/NAME where the weights are going to be found on the hub; None: in a folder.
        measured: results as `mmpt.evaluate.render` shows them.
        licence: the hub's name of one, such as "apache-2.0"; None: Apache-2.0 on the embedded model, else left open.
    """
    config, method, loaded = record["config"], record["method"], record.get("loaded", {})
    name = method.get("peft_type", "full fine-tuning")
    backbone, base = _shown_and_on_hub(record["backbone"])
    if backbone == "tiny":
        licence = licence or "apache-2.0"
    data = ModelCardData(
        library_name="peft" if method else "transformers",
        base_model=base,
        pipeline_tag="image-text-to-text",
        license=licence,
        tags=["mmpt", name.lower().replace(" ", "-"), *([f"base_model:adapter:{base}"] if base and method else [])],
    )
    versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
    text = _CARD.format(
        **record | {"method": name, "backbone": backbone, "versions": versions},
        what="A PEFT adapter" if method else "All weights but the vision encoder's",
        steps=config["steps"],
        last=min(100, config["steps"]),
        data=_tuned_on(config),
        load=_loading(backbone, method, repo, loaded.get("quantize")),
        measured="\n\n".join(f"```\n{result}\n```" for result in measured) or _UNMEASURED,
        settings=json.dumps(
            method | {k: v for k, v in (config | loaded).items() if k not in ("data", "start")}, indent=1
        ),
        licence=f"`{licence}`." if licence else "Not stated yet; the terms of the backbone hold as well.",
        citation=f"```bibtex\n{_CITATIONS[name]}\n```" if name in _CITATIONS else f"That of {name}, and mmpt.",
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def check_repo(repo: str) -> None:
    """InputError if `repo` is no OWNER/NAME."""
    if not re.fullmatch(_REPO, repo):
        raise InputError(f"The repository is {repo!r}; give OWNER/NAME.")


def open_repo(repo: str) -> None:
    """Make OWNER/NAME on the hub unless it is there, so that what would stop an upload is told before the work.

    Raises:
        InputError: the hub cannot be reached, or would not take it.
    """
    check_repo(repo)
    try:
        HfApi().create_repo(repo, exist_ok=True)
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(f"{repo} cannot be opened on the hub ({first_line(error)}); {_ONLINE}.") from error


def push(adapter: str | Path, repo: str, results: Sequence[str | Path] = (), licence: str | None = None) -> str:
    """Upload the weights and settings of a finished run to OWNER/NAME, in one commit, with `card` as README.md.

    `training.json`, which may name folders of this machine, stays here.

    Args:
        adapter: a shipped adapter's name, or the folder of a finished run.
        repo: OWNER/NAME; made, and public, unless it is there.
        results: files of `python -m mmpt evaluate --json`, for the card.
        licence: as for `card`.

    Returns:
        The commit's address.

    Raises:
        InputError: no finished run, a result that is none, the hub cannot be reached, or would not take it.
    """
    folder = Path(adapter) if os.path.isfile(Path(adapter) / "training.json") else adapter_folder(adapter)
    readme = _card_of(folder, repo, [_shown(file) for file in results], licence)
    open_repo(repo)
    names = sorted({path.relative_to(folder).as_posix() for pattern in _UPLOADED for path in folder.glob(pattern)})
    operations = [CommitOperationAdd(name, _content(folder / name)) for name in names]
    operations.append(CommitOperationAdd("README.md", readme.encode()))
    try:
        return HfApi().create_commit(repo, operations, commit_message="Upload what mmpt tuned").commit_url
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(
            f"{folder} could not be uploaded to {repo} ({first_line(error)}); {_ONLINE}, then run "
            f"python -m mmpt push {folder} {repo}."
        ) from error


def _card_of(folder, *told):
    try:
        return card(json.loads((folder / "training.json").read_text()), *told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder} holds no finished run; give a folder that `python -m mmpt train` wrote.") from None


def _content(file):
    """What is uploaded of a file: its path, but for the settings that may name a folder of this machine."""
    if file.name != "adapter_config.json":
        return str(file)
    settings = json.loads(file.read_text())
    base = settings["base_model_name_or_path"]
    settings["base_model_name_or_path"] = base if _on_hub(base) else Path(base).name
    return json.dumps(settings, indent=2).encode()


def _shown(file):
    wanted = "a file that `python -m mmpt evaluate --json` wrote"
    text = read_text(Path(file), wanted)
    try:
        return render(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file} holds no result; give {wanted}.") from None


def _tuned_on(config):
    if config.get("data"):
        return f"pictures and questions of one's own (`{Path(config['data']).name}`)"
    scenes = f"{config['scenes']:,} scenes" if config["scenes"] else "scenes"
    tasks = ", ".join(config["tasks"]) if config["tasks"] else "all instruction tasks"
    return f"{scenes} drawn from OpenMoji 17 (CC BY-SA 4.0), {tasks}"


def _shown_and_on_hub(backbone):
    """A backbone's name for a card and its hub id, None for a folder."""
    if backbone.removesuffix("-text") == "tiny":
        return "tiny", _TINY
    return (backbone, backbone) if _on_hub(backbone) else (Path(backbone).name, None)


def _on_hub(backbone):
    return re.fullmatch(_REPO, backbone) and not os.path.exists(backbone)


def _loading(backbone, method, repo, quantize):
    place = f'snapshot_download("{repo}")' if repo else '"FOLDER"'
    load, lines = "mmpt.load", ["import mmpt", "import PIL.Image"]
    if repo:
        lines.append("from huggingface_hub import snapshot_download")
    if not method:
        arguments = place
    elif method["peft_type"] == "MPT4LM" and backbone != "tiny":  # which has a tower of its own
        load = "load"
        lines.append("from mmpt.mpt4lm.backbone import load")
        arguments = f'"{backbone}", "TOWER", adapter={place}'
    else:
        arguments = f'"{backbone}", adapter={place}' + (f', quantize="{quantize}"' if quantize else "")
    return "\n".join([*lines, "", f"backbone = {load}({arguments})"])
