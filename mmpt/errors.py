"""What a person can get wrong, said in one sentence: what was given, what is wanted, what to do."""


class InputError(ValueError):
    """Shown as it is, without a traceback, by the command line (exit status 2) and the app."""


def first_line(error: Exception) -> str:
    """The first line of what an error says, its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
