"""Many questions on few pictures from one reading of each picture.

The LLM reads what comes before a question (template, prompts, picture) once a picture; its cache is then shared out
among that picture's questions. What follows runs on the model that PEFT wraps, adapters in it: the wrapper of prompt
or prefix tuning would put its prompts in again, and they are in the cache.

Notation: B questions, S columns read so far, T tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Cache

from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.m2pt.backbone import find_backbone
from mmpt.m2pt.slots import added_columns, select_rows


@dataclass
class Reading:
    """The LLM's state after B questions, each with its picture.

    Attributes:
        cache: keys and values of all that was read.
        mask: (B, S) what of it may be looked at; the slots of M²PT are not counted.
        logits: (B, V) for the first token of an answer.
        delta: (B, 1) how far a row's positions are from its number of tokens, where a picture takes fewer of them
            (Qwen counts its rows and columns), else 0.
    """

    backbone: Backbone
    cache: Cache
    mask: Tensor
    logits: Tensor
    delta: Tensor | int = 0

    def ahead(self, ids: Tensor, mask: Tensor | None = None, **options) -> Tensor:
        """Logits (B, T, V) after each of the further tokens `ids` (B, T), which join the cache."""
        self.mask = torch.cat([self.mask, torch.ones_like(ids) if mask is None else mask], 1)
        model = self.backbone.model
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        positions = (self.mask.cumsum(1) - 1).clamp(min=0) + self.delta  # as in `generate`: padding does not count
        return model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions[:, -ids.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            **options,
        ).logits

    def back(self, n: int) -> None:
        """Forget the last `n` columns."""
        self.mask = self.mask[:, :-n]
        self.cache.crop(-n)

    @torch.inference_mode()
    def answer(self, max_new_tokens: int) -> list[str]:
        """B greedy answers, as `Backbone.answer` gives them; what was read before is left as it was."""
        tokenizer, ends = self.backbone.processor.tokenizer, torch.tensor(self.backbone.end_ids).to(self.logits.device)
        tokens, done = [self.logits.argmax(-1)], torch.zeros_like(self.logits[:, 0], dtype=torch.bool)
        while not (done := done | torch.isin(tokens[-1], ends)).all() and len(tokens) < max_new_tokens:
            following = self.ahead(tokens[-1][:, None])[:, -1].argmax(-1)
            tokens.append(following.masked_fill(done, ends[0]))
        if len(tokens) > 1:
            self.back(len(tokens) - 1)
        texts = tokenizer.batch_decode(torch.stack(tokens, 1), skip_special_tokens=True)
        return [text.strip() for text in texts]


@torch.inference_mode()
def read(backbone: Backbone, images, questions) -> Reading:
    """Let the LLM read B questions, each with its picture; one picture given several times (`is`) is read once.

    But under sliding windows (Gemma 3), where each question is read with its own.
    """
    if hasattr(backbone, "read"):  # where the picture's tokens depend on the question, nothing can be shared
        return backbone.read(images, questions)
    device, processor, host = backbone.model.device, backbone.processor, find_backbone(backbone.model)
    first, rest = {id(image): image for image in images}, None
    if "sliding_attention" in (getattr(host.llm.config, "layer_types", None) or ()):
        # What evens out the questions would stand behind the picture, and push it out of the window.
        batch, rows = backbone.inputs(images, questions), torch.arange(len(images), device=device)
    else:
        order = {key: i for i, key in enumerate(first)}
        rows = torch.tensor([order[id(image)] for image in images], device=device)
        texts = [backbone.question_text(question) for question in questions]
        begun = ["".join(text.partition(processor.image_token)[:2]) for text in texts]
        batch = backbone._processed(first.values(), [begun[rows.tolist().index(i)] for i in range(len(first))], "left")
        # Of the whole text's tokens the last ones: a tokenizer may begin a text of its own in another way.
        whole, before = (processor.tokenizer(part)["input_ids"] for part in (texts, begun))
        rest = {"input_ids": [ids[len(part) :] for ids, part in zip(whole, before)]}
        rest = processor.tokenizer.pad(rest, padding_side="left", return_tensors="pt").to(device)
        batch = batch.to(device)
    if not hasattr(host.host, "rope_deltas") and not batch["attention_mask"].all():  # else padding would count
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    out = backbone.model(**batch, use_cache=True, logits_to_keep=1)
    cache, mask = out.past_key_values, batch["attention_mask"][rows]
    select_rows(cache, rows)
    virtual = cache.get_seq_length() - added_columns(cache) - mask.shape[1]  # of prompt and prefix tuning
    delta = getattr(host.host, "rope_deltas", None)
    mask = torch.cat([mask.new_ones(len(mask), virtual), mask], 1)
    reading = Reading(backbone, cache, mask, out.logits[:, -1], 0 if delta is None else delta[rows])
    if rest is not None:
        reading.logits = reading.ahead(rest["input_ids"], rest["attention_mask"], logits_to_keep=1)[:, -1]
    if reading.logits.isnan().any():
        raise InputError(
            f"{backbone.name!r} overflows in {str(backbone.model.dtype).removeprefix('torch.')}; load it with "
            "dtype=torch.float32, or torch.bfloat16 where the GPU has units for it."
        )
    cache.activate_past_recording()  # so that `back` finds what has left a sliding window
    return reading
