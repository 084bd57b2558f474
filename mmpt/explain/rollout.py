"""Attention rollout (Abnar & Zuidema, ACL 2020, arXiv 2005.00928): attention followed back through the layers.

Notation: L layers, T positions.
"""

import torch
from torch import Tensor

from mmpt.explain.attention import PREDICTING, Attention


def rollout(attention: Attention, source=PREDICTING) -> Tensor:
    """(L, T) of which positions the source's last state is made: row l in terms of the inputs of layer l.

    Row 0 is the paper's rollout, the source's rows of A_L … A_1 with A = 0.5 W + 0.5 I: heads averaged, one half for
    the residual stream, rows of A brought to a sum of 1 (so prompts inside attention are left out). The later rows
    follow the attention back part of the way.

    Slots cut the flow. Where a layer's input overwrites a slot, nothing from before it gets through: what flows back
    into the slot stays there, as a share of that layer's prompt. So under "replace" a prompt's share is that of its
    prompts in all layers from l on. Under "carry" what flows into a slot flows on to what the slot gathered before;
    the prompts added on the way get no share of their own, so textual prompts come out too low.

    In a causal LLM the first position ends up with nearly everything after many layers, whatever was asked: it can
    look at itself alone, so what flows into it stays (Wu et al., ICML 2025, arXiv 2502.01951). Read the upper layers,
    or `attention.without_sinks()`. And attention says nothing of the size of what it weights: this is a rough guess.

    Raises:
        InputError: the sequence has no such source.
    """
    slots = attention.segments.where(attention.segments.slots)
    identity = torch.eye(len(attention.segments))
    flow = identity[attention.positions(source)].mean(0)  # (T,)
    stayed, rows = torch.zeros_like(flow), []
    for layer in reversed(range(len(attention.weights))):
        mixing = 0.5 * attention.weights[layer].mean(0) + 0.5 * identity
        flow = flow @ (mixing / mixing.sum(-1, keepdim=True))
        if layer in attention.segments.written:
            stayed[slots] += flow[slots]
            flow[slots] = 0
        rows.append(flow + stayed)
    return torch.stack(rows[::-1])
