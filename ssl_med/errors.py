"""The one exception a person is meant to read: a sentence that says what, where, and what to do."""


class UserError(Exception):
    """Bad input or a bad setting. The command line prints its sentence without a traceback and exits with 2."""
