"""Exercises of notebook 4: counting what is tuned, and who can look at whom."""

from mmpt.exercises.check import exercise


def _sizes(rng):
    depth = rng.choice((6, 12, 24))
    return (rng.choice((30, 32)), rng.randint(1, 20), rng.choice((576, 4096)), depth, rng.randint(1, 20),
            rng.choice((192, 1024)), rng.choice((-1, -2)))  # fmt: skip


def _all_layers(M, Pt, D, N, Pv, d, feature_layer):
    return tuned_parameters(M, Pt, D, N, Pv, d, -1)


def _without_bias(M, Pt, D, N, Pv, d, feature_layer):
    return tuned_parameters(M, Pt, D, N, Pv, d, feature_layer) - D


def _prompts_only(M, Pt, D, N, Pv, d, feature_layer):
    return tuned_parameters(M, Pt, D, N, Pv, d, feature_layer) - d * D - D


@exercise(
    "tuned_parameters",
    _sizes,
    (_all_layers, "with feature_layer −2 the last layer's output is never read, so it gets no prompts."),
    (_without_bias, "a linear layer has a bias too: D more."),
    (_prompts_only, "these are the prompts alone; the projector is tuned with them."),
)
def tuned_parameters(M: int, Pt: int, D: int, N: int, Pv: int, d: int, feature_layer: int) -> int:
    used = N + 1 + feature_layer
    return M * Pt * D + used * Pv * d + d * D + D


_ORDERS = (
    ["textual", "visual", "patch", "question", "answer"],
    ["visual", "patch", "textual", "question", "answer"],
    ["question", "visual", "patch", "textual", "answer"],
    ["textual", "question", "visual", "patch", "answer"],
)


@exercise(
    "can_look",
    lambda rng: (rng.choice(_ORDERS),),
    (lambda order: {(b, a) for a, b in can_look(order)},
     "these pairs run the wrong way: (a, b) says that a looks at b, and one can only look "
     "back."),
    (lambda order: {(a, b) for a in order for b in order if a != b},
     "that holds in the vision encoder; the LLM is causal, so nothing looks ahead."),
)  # fmt: skip
def can_look(order: list[str]) -> set[tuple[str, str]]:
    return {(later, earlier) for i, later in enumerate(order) for earlier in order[:i]}
