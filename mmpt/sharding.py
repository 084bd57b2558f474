"""Parameters that FSDP has cut up among processes: gathered to be written, cut up again to go on from a file."""

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map


def whole(state, keep: bool):
    """`state`, nested dictionaries and lists, with every sharded tensor gathered; all processes must call it together.

    Only where `keep` is set does it come back, in the CPU's memory; elsewhere None stands for each such tensor.
    """

    def gather(value):
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if keep else None

    return tree_map(gather, state)


def sharded_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor, cut up as `parameter` of the same shape is; as it is if that is whole, or of another shape."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
