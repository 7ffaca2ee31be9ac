"""The errors a user meets: one line that names the thing, what is wrong with it and what to do."""


class DinoRayError(Exception):
    """Base of every error meant for a user; the CLI prints its message without a traceback."""

    exit_code = 1


class UsageError(DinoRayError):
    """The request itself can't be honoured: a missing file, an option out of range, an unknown model."""

    exit_code = 2


class JobError(DinoRayError):
    """A valid request failed while it ran."""
