"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: one sentence with what was found, what was expected, where, and the cure.

    The command line prints the sentence and exits with :attr:`exit_code`; a notebook shows the sentence instead
    of a traceback, because the fault lies in a path, a file or a setting and not in the code on the stack.
    """

    exit_code = 2

    def __init__(self, sentence: str):
        # A loader's worker hands its error over wrapped in a traceback, as text; the sentence stands at its end.
        super().__init__(sentence.rpartition(f"{__name__}.UserError: ")[2].strip())

    def _render_traceback_(self) -> list[str]:
        """IPython's hook for exceptions that bring their own rendering."""
        return [f"{type(self).__name__}: {self}"]
