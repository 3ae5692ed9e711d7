"""What can go wrong and is not our bug: three kinds of refusal and an interruption, each with its exit code.

A message says in one line what, where, and how to mend it; cli.run prints it and exits with the code.
"""


class Refusal(Exception):
    """The base of the four below; never raised itself."""

    exit_code = 1


class UsageError(Refusal, ValueError):
    """A flag, a config key or a name that we do not know, or values that do not go together."""

    exit_code = 2


class FileProblem(Refusal, OSError):
    """A file is missing, unreadable or unwritable (a full disk too)."""

    exit_code = 3


class ContentError(Refusal, ValueError):
    """A file was read, but its content fails a check: wrong architecture, wrong shape, NaN, checksum."""

    exit_code = 4


class Interrupted(Refusal):
    """The run was asked to stop; its state is saved, and the same command resumes it."""

    exit_code = 75
