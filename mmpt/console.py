"""How a command ends: with a sentence and an exit status, never with a traceback for what a person can get wrong."""

import logging
import os
import sys
import warnings
from collections.abc import Callable

from mmpt.errors import InputError


def run(program: str, command: Callable, *args) -> int:
    """Run `command`; exit status 0, 2 for an InputError, 130 for Ctrl-C."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' messages to each other
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on some CPUs it misses a kernel at every start
    try:
        command(*args)
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which need not be there
            raise
        print(
            f"{program}: The GPU's memory is full. End what else runs there, hold the weights in fewer bits "
            "(--quantize), or tune with fewer --pictures, more --accumulate or --gradient-checkpointing.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as stop:
        print(f"{program}: {str(stop) or 'Stopped.'}", file=sys.stderr)
        return 130
    return 0
