"""The exercises of the notebooks: `check("patches", my_function)` says what is right and what differs.

One file holds the exercises of one notebook: `check.py` is what they share.
"""

from mmpt.exercises import (  # noqa: F401  (they register themselves)
    ablating,
    anatomy,
    looking,
    own,
    rivals,
    seeing,
    start,
    textual,
    together,
    tuning,
    visual,
)
from mmpt.exercises.check import EXERCISES, Verdict, check

__all__ = ["EXERCISES", "Verdict", "check"]
