"""mmpt: learn, try and look inside multimodal prompt tuning."""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "load": "mmpt.backbones",
    "Backbone": "mmpt.backbones",
    "M2PTConfig": "mmpt.m2pt",
    "M2PTModel": "mmpt.m2pt",
    "parameter_report": "mmpt.m2pt",
    "TrainConfig": "mmpt.train",
    "make_scene": "mmpt.scenes",
    "InputError": "mmpt.errors",
}
__all__ = list(_HOMES)


def __getattr__(name):
    # Imported when first asked for: torch and transformers take seconds, and `python -m mmpt --help` needs neither.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mmpt' has no attribute {name!r}")
