"""The root of the errors that a user can meet."""

from __future__ import annotations


class OpcelError(Exception):
    """An error with a message for the user: what is wrong, where, and the way out.

    `exit_code` is the exit status of a command that ends with this error.
    """

    exit_code: int = 1
