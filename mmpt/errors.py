"""What a person can get wrong, said in one sentence: what was given, what is wanted, what to do."""


class InputError(ValueError):
    """Shown as it is, without a traceback, by the command line (exit status 2) and the app."""
