"""Errors a user can act on, and the exit status each one ends the command line with.

Everything raised on purpose derives from :class:`MAESILError`: the command line prints its one line
and ends with its status. Any other exception is a bug and keeps its traceback (status 1).
"""

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_CANCELLED = 3
EXIT_RESOURCES = 4


class MAESILError(Exception):
    """Base of the errors a user can act on.

    Args:
        message: what is wrong and where, in one line.
        hint: what to do about it, in one line.
    """

    exit_status = EXIT_BUG
    kind = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class InputError(MAESILError):
    """Bad usage, or an input that cannot be used as it is."""

    exit_status = EXIT_INPUT
    kind = "bad_input"


class CancelledError(MAESILError):
    """The user, or a scheduler, asked for a stop."""

    exit_status = EXIT_CANCELLED
    kind = "cancelled"


class OutOfMemoryError(MAESILError):
    """The machine or the device has too little memory for the request."""

    exit_status = EXIT_RESOURCES
    kind = "out_of_memory"


class DiskFullError(MAESILError):
    """A result could not be written because the disk is full or a quota is reached."""

    exit_status = EXIT_RESOURCES
    kind = "disk_full"
