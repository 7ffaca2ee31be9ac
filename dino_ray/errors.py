"""The errors a user meets: one line that names the thing, what is wrong with it and what to do."""


class DinoRayError(Exception):
    """Base of every error meant for a user; the CLI prints its message without a traceback."""

    exit_code = 1


class UsageError(DinoRayError):
    """The request itself can't be honoured: a missing file, an option out of range, an unknown model."""

    exit_code = 2


class JobError(DinoRayError):
    """A valid request failed while it ran."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a job; its text says what is kept and how to go on."""


def describe_error(error: BaseException) -> str:
    """An exception as one line: what it says, and its kind unless it was written for the user."""
    if isinstance(error, DinoRayError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def for_user(error: Exception) -> DinoRayError:
    """An exception of somebody else's code as one that the command line can print."""
    return error if isinstance(error, DinoRayError) else JobError(describe_error(error))
