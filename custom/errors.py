"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """A mistake in what the user gave: a path, a key, an array, a model.

    The message is one sentence that says what is wrong, where, and what to do. The bundle's runs
    print the message alone and exit with status 1; every other exception keeps its traceback.

    torch makes an error of a data loader's worker anew, with the worker's whole traceback for a
    message: only the sentence at its end is kept.

    Args:
        message: the sentence.
    """

    def __init__(self, message: str) -> None:
        name = type(self).__name__
        if message.startswith(f"Caught {name} in "):
            message = message.rpartition(f"{name}: ")[2].strip()
        super().__init__(message)
