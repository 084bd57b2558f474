"""Train the vision tower and the projector of the embedded model from nothing: `python -m mmpt.tiny.pretrain`.

Four stages, each resumable: `vision` (dense objective), `code` (how a picture is best written for the frozen LLM, from
the ground truth), `projector` (tower and projector learn to write it, LLM not run), `align` (stage 1: descriptions
through the frozen LLM). Data follow from the seed and the step alone.
"""

import argparse
import json
import math
import random
import re
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, default_collate
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPVisionModel

from mmpt.backbones import load_tiny
from mmpt.files import ASSETS
from mmpt.scenes import SEEDS, make_scene
from mmpt.tiny.codes import GROUND, WRITABLE, PictureCode
from mmpt.tiny.describe import QUESTIONS, describe
from mmpt.tiny.language import language_model_folder
from mmpt.tiny.optim import Muon
from mmpt.tiny.vision import (
    LABELS,
    DenseHeads,
    patch_targets,
    pixel_values,
    vision_config,
)


class SceneBatches(IterableDataset):
    """Batches of (scenes, pixels), made of seeds that follow from the step, so a run can start at any step.

    Digits and signs appear more often than in scenes elsewhere: they are the hardest to read. Sixteen batches at a
    time are sorted by the number of things, so that descriptions in a batch are of like length, and then taken in
    random order.
    """

    together, text = 16, 0.4

    def __init__(self, first, last, batch, seed):
        self.first, self.last, self.batch, self.seed = first, last, batch, seed

    def __iter__(self):
        for chunk in range(self.first // self.together, math.ceil(self.last / self.together)):
            size = self.together * self.batch
            start = SEEDS["base"] + self.seed + chunk * size
            scenes = sorted(
                (make_scene(s, text=self.text) for s in range(start, start + size)), key=lambda s: len(s.things)
            )
            order = list(range(self.together))
            random.Random(chunk).shuffle(order)
            for i, part in enumerate(order):
                if self.first <= chunk * self.together + i < self.last:
                    chosen = scenes[part * self.batch : (part + 1) * self.batch]
                    yield chosen, pixel_values([s.image for s in chosen])


def fit(stage, module, optimizers, loss_of, *, steps, batch, seed, out, save_every=100, warmup=0.05):
    """Run `steps` steps of `loss_of(data)` with warm-up and cosine decay; resume from `out/stage.pt` if it exists."""
    checkpoint, log = out / f"{stage}.pt", out / f"{stage}.jsonl"
    first, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        first, spent = saved["step"], saved["seconds"]
    base_rates = [[g.setdefault("initial_lr", g["lr"]) for g in o.param_groups] for o in optimizers]
    start = time.time() - spent
    bar = tqdm(total=steps, initial=first, desc=stage)
    batches = DataLoader(SceneBatches(first, steps, batch, seed), batch_size=None, num_workers=1, prefetch_factor=4)
    for step, data in zip(range(first, steps), batches):
        progress = max(0.0, (step / steps - warmup) / (1 - warmup))
        factor = min(1.0, (step + 1) / (warmup * steps)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for optimizer, rates in zip(optimizers, base_rates):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor
        loss, figures = loss_of(data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", **{k: f"{v:.2f}" for k, v in figures.items()})
        if (step + 1) % 10 == 0:
            with log.open("a") as f:
                row = {"step": step + 1, "seconds": round(time.time() - start, 1), "loss": loss.item()} | figures
                f.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            saved = {"module": module.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            torch.save(saved | {"step": step + 1, "seconds": time.time() - start}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)


def vision(out, *, steps, batch, seed, lr=1.5e-3):
    """Stage 1 of 4: the tower learns what stands on every patch."""
    torch.manual_seed(seed)
    tower = CLIPVisionModel(vision_config())
    module = torch.nn.ModuleDict({"tower": tower, "heads": DenseHeads(tower.config.hidden_size)})
    matrices = [p for n, p in tower.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in module.parameters() if id(p) not in chosen]
    optimizers = [Muon(matrices, lr=lr, weight_decay=0.05), torch.optim.AdamW(others, lr=lr, weight_decay=0.0)]

    def loss_of(data):
        scenes, pixels = data
        return module["heads"](patches_of(tower, pixels), default_collate([patch_targets(s) for s in scenes]))

    fit("vision", module, optimizers, loss_of, steps=steps, batch=batch, seed=seed, out=out)


def code(out, *, steps, batch, seed, lr=3e-3):
    """Stage 2 of 4: what a picture's content should look like to the frozen LLM, learned from descriptions.

    No tower yet: the ground truth is written by `PictureCode`, which alone learns. A fifth of the descriptions
    suffices that tower and projector would need to find such vectors through the LLM themselves.
    """
    torch.manual_seed(seed)
    backbone = load_tiny(vision_weights(out / "vision.pt"))
    model = backbone.model.requires_grad_(False)
    table = model.get_input_embeddings()
    picture = PictureCode(word_embeddings(table.weight))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in picture.named_parameters() if n != "turn"]},
            {"params": [picture.turn], "lr": lr / 6},
        ],
        lr=lr,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )

    def loss_of(data):
        inputs = description_inputs(backbone, data[0])
        words, added = picture(data[0])
        shown = (inputs["input_ids"] == model.config.image_token_id)[..., None]
        embeddings = table(inputs["input_ids"]).masked_scatter(shown, picture.words()[words] + added)
        hidden = model.model.language_model(
            inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state
        return answer_loss(model, hidden, inputs["labels"]), {}

    fit("code", picture, [optimizer], loss_of, steps=steps, batch=batch, seed=seed + (1 << 29), out=out, save_every=25)


def projector(out, *, steps, batch, seed, lr=2e-3, tower_lr=1e-3):
    """Stage 3 of 4: tower and projector learn to write what `code` learned; the LLM is not run.

    Which word stands on a patch: cross-entropy over squared distances to all words' vectors, in units of the words'
    mean distance from each other; to which the squared distance itself is added. The dense objective goes on.
    """
    torch.manual_seed(seed)
    saved = torch.load(out / "vision.pt", weights_only=True)["module"]
    model = load_tiny(vision_weights(out / "vision.pt")).model.requires_grad_(False)
    tower, mlp = model.model.vision_tower, model.model.multi_modal_projector
    heads = DenseHeads(tower.config.hidden_size)
    heads.load_state_dict({k.removeprefix("heads."): v for k, v in saved.items() if k.startswith("heads.")})
    for linear, gain in ((mlp.linear_1, 1.0), (mlp.linear_2, 0.1)):
        torch.nn.init.xavier_uniform_(linear.weight, gain)
        torch.nn.init.zeros_(linear.bias)
    picture = PictureCode(torch.zeros(len(WRITABLE), model.config.text_config.hidden_size))
    picture.load_state_dict(torch.load(out / "code.pt", weights_only=True)["module"])
    picture.requires_grad_(False)
    vectors = picture.words()
    unit = torch.pdist(vectors).square().mean()
    module = torch.nn.ModuleDict({"tower": tower, "projector": mlp, "heads": heads}).requires_grad_(True)
    tower.post_layernorm.requires_grad_(False)  # the LLM reads the last layer before it
    matrices = [p for n, p in tower.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in [*tower.parameters(), *heads.parameters()] if id(p) not in chosen and p.requires_grad]
    optimizers = [
        Muon(matrices, lr=tower_lr, weight_decay=0.0),
        torch.optim.AdamW(
            [{"params": others, "lr": tower_lr}, {"params": list(mlp.parameters()), "lr": lr}], weight_decay=0.0
        ),
    ]

    def loss_of(data):
        scenes, pixels = data
        patches = patches_of(tower, pixels)
        dense, _ = heads(patches, default_collate([patch_targets(s) for s in scenes]))
        target, added = picture(scenes)
        target, written = target.flatten(), (mlp(patches) - added).flatten(0, 1)
        distance = torch.cdist(written, vectors).square() / unit
        entropy = functional.cross_entropy(-20 * distance, target, reduction="none")
        missed = (written - vectors[target]).square().sum(-1) / unit
        is_ground, is_name = target >= GROUND, target < len(LABELS)
        weight = torch.where(is_ground, 0.3, 1.0)
        loss = (weight * (entropy + 5 * missed)).sum() / weight.sum() + 0.5 * dense
        right = distance.argmin(-1) == target
        marks = {"names": right[is_name], "rest": right[~is_name & ~is_ground], "ground": right[is_ground]}
        figures = {name: values.float().mean().item() for name, values in marks.items()}
        return loss, figures | {"missed": missed.mean().item()}

    fit("projector", module, optimizers, loss_of, steps=steps, batch=batch, seed=seed + (1 << 28), out=out)


def word_embeddings(table):
    """(W, D) the LLM's embeddings of `WRITABLE`; of two words, as in "top left", their mean."""
    tokenizer = AutoTokenizer.from_pretrained(language_model_folder())
    rows = []
    for text in WRITABLE:
        tokens = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][-1] for word in text.split()]
        rows.append(table[tokens].mean(0))
    return torch.stack(rows)


def align(out, *, steps, batch, seed, lr=2e-4, tower_lr=1e-4):
    """Stage 4 of 4 (LLaVA's stage 1): descriptions through the frozen LLM; tower and projector learn."""
    torch.manual_seed(seed)
    backbone = load_tiny(trained_weights(out / "projector.pt"))
    model = backbone.model.requires_grad_(False)
    module = torch.nn.ModuleDict({"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector})
    module.requires_grad_(True)
    module["tower"].post_layernorm.requires_grad_(False)  # the LLM reads the last layer before it
    optimizers = [
        torch.optim.AdamW(module["projector"].parameters(), lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
        torch.optim.AdamW([p for p in module["tower"].parameters() if p.requires_grad], lr=tower_lr, weight_decay=0.0),
    ]

    def loss_of(data):
        inputs = description_inputs(backbone, data[0])
        labels = inputs.pop("labels")
        return answer_loss(model, model.model(**inputs, use_cache=False).last_hidden_state, labels), {}

    fit("align", module, optimizers, loss_of, steps=steps, batch=batch, seed=seed + (1 << 29), out=out, save_every=25)


def patches_of(tower, pixels):
    """Hidden states that the projector reads: (B, 3, H, W) → (B, N, D)."""
    return tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


def description_inputs(backbone, scenes):
    """Each scene's description as the answer to one of `QUESTIONS`, as `Backbone.training_inputs` gives it."""
    talks = [[(QUESTIONS[s.seed % len(QUESTIONS)], describe(s))] for s in scenes]
    return backbone.training_inputs([s.image for s in scenes], talks)


def answer_loss(model, hidden, labels):
    """Next-token cross-entropy with the output head applied at the answers' positions only."""
    chosen = labels[:, 1:] != -100
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][chosen]), labels[:, 1:][chosen])


def vision_weights(checkpoint):
    """The tower after the vision stage, named as in `assets/tiny/model.safetensors`."""
    saved = torch.load(checkpoint, weights_only=True)["module"]
    return {f"vision_{k}": v for k, v in saved.items() if k.startswith("tower.")}


def trained_weights(checkpoint):
    """Tower and projector after the later stages, named likewise."""
    names = {"tower": "vision_tower", "projector": "multi_modal_projector"}
    saved = torch.load(checkpoint, weights_only=True)["module"]
    saved = {k: v for k, v in saved.items() if k.split(".")[0] in names}
    return {re.sub(r"^\w+", lambda m: names[m[0]], k): v for k, v in saved.items()}


def export(out, file):
    """Write the aligned tower and projector as fp16 safetensors."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in trained_weights(out / "align.pt").items()}, file)


STAGES = {"vision": vision, "code": code, "projector": projector, "align": align}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "export"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch", type=int, default=96)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "export":
        export(args.out, ASSETS / "tiny" / "model.safetensors")
    else:
        STAGES[args.stage](args.out, steps=args.steps, batch=args.batch, seed=args.seed)


if __name__ == "__main__":
    main()
