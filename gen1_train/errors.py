"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Bad input: the message is one line that names the thing and the mend.

    Entry points print it without a traceback and end with exit code 2 (see `gen1_train.cli`).
    """
