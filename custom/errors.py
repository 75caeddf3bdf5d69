"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """A mistake in what the user gave: a path, a key, an array, a model.

    The message is one sentence that says what is wrong, where, and what to do. The bundle's runs
    print the message alone and exit with status 1; every other exception keeps its traceback.
    """
