"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input: the message says which file or key, what is wrong and what to do.

    ``python -m fcn`` prints it as one sentence and exits with status 2, without a traceback.
    """
