"""What a person is meant to read, a sentence that says what, where, and what to do; and the end by a signal."""

import signal


class UserError(Exception):
    """Bad input or a bad setting. The command line prints its sentence without a traceback and exits with 2."""

    exit_code = 2


class Interrupted(UserError):
    """Something from outside ended the run, which may go well when it is repeated: exit code 1, which relaunches it."""

    exit_code = 1


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and has saved itself; repeating the command goes on.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 130 if number == signal.SIGINT else 143
