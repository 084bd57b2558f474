"""A device that is not the CPU, where there is no other: CPU tensors that say they are elsewhere.

As on a GPU, an operation on tensors of both places is an error. Import it before mmpt, in a process of its own.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

torch.inference_mode = torch.no_grad  # whose tensors cannot be of a class of ours
_setup_privateuseone_for_python_backend("elsewhere")
ELSEWHERE = torch.device("elsewhere:0")
BOTH = {"aten::_to_copy", "aten::copy_"}  # operations between devices


class There(torch.Tensor):
    """`inner`, a CPU tensor, elsewhere."""

    @staticmethod
    def __new__(cls, inner):
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **place, device=ELSEWHERE)

    def __init__(self, inner):
        self.inner = inner

    def __getitem__(self, key):
        def moved(index):  # indices may lie on the CPU
            return torch.as_tensor(index).to(ELSEWHERE) if isinstance(index, list | torch.Tensor) else index

        return super().__getitem__(tuple(map(moved, key)) if isinstance(key, tuple) else moved(key))

    def __repr__(self, **options):
        return f"There({self.inner!r})"

    def tolist(self):
        return self.inner.tolist()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _call(operation, args, kwargs or {})


def _call(operation, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    here = [t for t in tensors if not isinstance(t, There) and t.ndim]
    name, asked = operation._schema.name, kwargs.get("device")
    if there and here and name not in BOTH:
        raise RuntimeError(f"{name}: {[tuple(t.shape) for t in here]} are on the CPU, the other tensors are not.")
    goes = bool(there) if asked is None else torch.device(asked).type == ELSEWHERE.type
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, There) else x, (args, kwargs))
    result = operation(*args, **kwargs | ({} if asked is None else {"device": "cpu"}))
    known = {id(t): t for t in tensors} | {id(t.inner): t for t in there}  # what was written in place

    def placed(x):
        return known.get(id(x)) if id(x) in known else There(x) if goes and isinstance(x, torch.Tensor) else x

    return tree_map(placed, result)


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _call(operation, args, kwargs or {})


class Made(TorchFunctionMode):
    """`torch.tensor` is no operation: it makes a CPU tensor and moves it where no mode sees it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not torch.tensor:
            return function(*args, **kwargs)
        device = kwargs.pop("device", None)
        plain = tree_map(lambda x: x.tolist() if isinstance(x, There) else x, args)
        made = function(*plain, **kwargs)
        return made if device is None else made.to(device)
