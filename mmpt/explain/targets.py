"""What is asked of an answer, as one number: the target that attribution, interaction and checks take apart.

Notation: B rows, T tokens, n tokens of an answer with the one that ends it, N patches, P prompts, L places of a prompt
(`mmpt.explain.interventions.prompt_rows`), D width of the LLM.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from mmpt.backbones import Backbone
from mmpt.errors import InputError
from mmpt.explain.interventions import prompt_rows, prompt_strength
from mmpt.explain.segments import cells, encode, segments
from mmpt.m2pt.backbone import find_backbone

ROWS = {"cpu": 4, "cuda": 32}  # scored at a time; on a CPU larger batches leave its cache and are slower


@dataclass(frozen=True)
class Target:
    """A number to explain.

    Target("a cat")                 log-probability of the answer: the sum over its tokens and the one that ends it
    Target("a cat", token=1)        log-probability of that token alone, counted from 0, given those before it
    Target("a cat", other="a dog")  log-probability of the answer minus that of the other

    Raises:
        InputError: both a token and another answer, or twice the same answer.
    """

    answer: str
    token: int | None = None
    other: str | None = None

    def __post_init__(self):
        if self.token is not None and self.other is not None:
            raise InputError(f"token={self.token} and other={self.other!r} are two targets; give one of them.")
        if self.other == self.answer:
            raise InputError(f"The difference between {self.answer!r} and itself is always 0; name another answer.")

    @property
    def kind(self) -> str:
        """One of "answer", "token" and "difference"."""
        return "token" if self.token is not None else "answer" if self.other is None else "difference"

    @property
    def answers(self) -> list[str]:
        """The one answer, or both."""
        return [self.answer] if self.other is None else [self.answer, self.other]

    def words(self) -> str:
        """The target as one reads it."""
        if self.kind == "token":
            return f"log-probability of token {self.token + 1} of the answer “{self.answer}”"
        if self.kind == "difference":
            return f"log-probability of the answer “{self.answer}” minus that of “{self.other}”"
        return f"log-probability of the answer “{self.answer}”"

    def score(self, logps: Sequence[Tensor]) -> Tensor:
        """From the log-probabilities of the tokens (..., n) of each of `answers`, the target (...).

        Raises:
            InputError: the answer has no such token.
        """
        if self.token is None:
            totals = [logp.sum(-1) for logp in logps]
            return totals[0] - totals[1] if self.other is not None else totals[0]
        n = logps[0].shape[-1]
        if not 0 <= self.token < n:
            raise InputError(
                f"The answer {self.answer!r} has {n} tokens with the one that ends it, so there is no token "
                f"{self.token}; give one from 0 to {n - 1}."
            )
        return logps[0][..., self.token]


@torch.no_grad()
def token_log_probabilities(backbone: Backbone, images, questions, answers) -> list[Tensor]:
    """For each of B pictures with question and answer, (n,) the log-probability of each of the answer's tokens."""
    batch = backbone.training_inputs(images, [[pair] for pair in zip(questions, answers)])
    labels = batch.pop("labels")
    labels = labels[:, (labels != -100).any(0).int().argmax() :]
    with still(backbone.model):
        # Counted from the end, since some methods of PEFT put virtual tokens before the first.
        logits = backbone.model(**batch, use_cache=False, logits_to_keep=labels.shape[1] + 1).logits[:, :-1]
    logps = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return [logp[row != -100].cpu() for logp, row in zip(logps, labels)]


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Within the context the model is frozen and in evaluation mode; afterwards as it was, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    tuned = [p for p in model.parameters() if p.requires_grad]
    try:
        model.eval()
        for p in tuned:
            p.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p in tuned:
            p.requires_grad_(True)


class Case:
    """One picture, one question and a target, to be scored again and again with parts of it changed.

    Attributes:
        target: without one, the log-probability of the backbone's own greedy answer.
        segments: of the sequence up to the answer's end.
        grid: (rows, columns) of the patches as the LLM has them, `patch` pixels wide and high each.
        pixels: (1, 3, H, W) the picture as the model gets it.
        embeddings: (1, Q, D) of the question's tokens, whose texts are `words`.
        prompts: see `prompt_rows`.
        parts: for each of the target's answers the token ids up to the last but one (1, T), and the answer's (n,).
        rows: how many it scores at a time; under gradients all that it is given.

    Raises:
        InputError: the answer has no such token.
    """

    def __init__(self, backbone: Backbone, image: Image.Image, question: str, target: Target | None = None):
        self.backbone, self.image, self.question = backbone, image, question
        self.target = target or Target(backbone.answer([image], [question])[0])
        self.segments = segments(backbone, image, question, self.target.answer)
        self.grid, self.prompts = self.segments.grid, prompt_rows(backbone)
        self.parts = []
        for answer in self.target.answers:
            batch = encode(backbone, image, question, answer)
            places = (batch["labels"][0] != -100).nonzero()[:, 0]
            ids = batch["input_ids"][:, : places[-1] + 1]
            self.parts.append((ids[:, :-1], ids[0, places]))
        self.target.score([torch.zeros(len(labels)) for _, labels in self.parts])
        pixels, self._host = batch["pixel_values"], find_backbone(backbone.model)
        self.pixels, self._shape = pixels.view(1, *pixels.shape[-3:]), pixels.shape[1:]
        self.rows = ROWS.get(pixels.device.type, 4)
        _, self.patch = cells(backbone, batch)
        where = self.segments.where("question").tolist()
        self.words = [self.segments.labels[i] for i in where]
        self._columns = torch.tensor([self.segments.input_index[i] for i in where], device=self.pixels.device)
        self._table = backbone.model.get_input_embeddings()
        self.embeddings = self._table(self.parts[0][0]).detach()[:, self._columns]

    @property
    def nothing(self) -> Tensor:
        """(1, Q, D) a question that says nothing: the mean of the vocabulary's embeddings in each place.

        The mean has the size of an embedding's common part; a zero vector has none, and the way there from an
        embedding is no change at all for a pre-norm LLM until its very end.
        """
        scale = getattr(self._table, "embed_scale", 1.0)  # Gemma's
        return (scale * self._table.weight.detach().mean(0)).expand_as(self.embeddings)

    def picture_inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) as the host's arguments."""
        return {"pixel_values": pixels.reshape(len(pixels), *self._shape)}

    def random_words(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, Q, D) n questions of random words."""
        ids = torch.randint(len(self._table.weight), (n, len(self.words)), generator=generator)
        return self._table(ids.to(self.embeddings.device)).detach()

    def __call__(
        self,
        patch: Tensor | None = None,
        question: Tensor | None = None,
        textual: Tensor | None = None,
        visual: Tensor | None = None,
        parameters: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(B,) the target with these in place of what is there; None leaves it. Gradients flow into all of them.

        Args:
            patch: (B, 3, H, W) pixels.
            question: (B, Q, D) embeddings of the question's tokens.
            textual, visual: (B, P) or (B, L, P) strengths of the prompts, see `prompt_strength`.
            parameters: parameters of the model by name, with a dimension B before their own (prompts only).
        """
        given = {"patch": patch, "question": question, "textual": textual, "visual": visual}
        given = {name: value for name, value in given.items() if value is not None}
        parameters = parameters or {}
        B = max(map(len, [*given.values(), *parameters.values()]), default=1)
        if B > self.rows and not torch.is_grad_enabled():
            cuts = [slice(i, i + self.rows) for i in range(0, B, self.rows)]
            parts = [
                ({k: v[cut] for k, v in given.items()}, {k: v[cut] for k, v in parameters.items()}) for cut in cuts
            ]
            return torch.cat([self(**inputs, parameters=tuned) for inputs, tuned in parts])
        strengths = {kind: given[kind] for kind in ("textual", "visual") if kind in given}
        pixels = given.get("patch", self.pixels).expand(B, -1, -1, -1)
        with still(self.backbone.model), prompt_strength(self.backbone, **strengths):
            logps = [self._log_probabilities(ids, labels, pixels, question, parameters) for ids, labels in self.parts]
        return self.target.score(logps)

    def _log_probabilities(self, ids, labels, pixels, question, parameters):
        """(B, n)"""
        inputs = {"input_ids": ids.expand(len(pixels), -1)}
        if question is not None:
            embeds = self._table(inputs["input_ids"])
            inputs = {"inputs_embeds": embeds.index_copy(1, self._columns, question.to(embeds))}
        if self._host.family.image_type:
            types = (ids == self._host.image_token_id).long() * self._host.family.image_type
            inputs["token_type_ids"] = types.expand(len(pixels), -1)
        inputs |= self.picture_inputs(pixels) | {"use_cache": False, "logits_to_keep": len(labels)}
        # Calls the model as a module, so that hooks of its wrappers run too.
        logits = functional_call(self.backbone.model, parameters, kwargs=inputs).logits
        logps = logits.float().log_softmax(-1)
        return logps.gather(-1, labels.expand(len(logps), -1)[..., None])[..., 0]
