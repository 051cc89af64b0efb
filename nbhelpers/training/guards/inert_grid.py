"""G2: a sweep whose grid cannot matter, because the term it varies has no say in any of its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nbhelpers.core.knobs import INERT_SHARE
from nbhelpers.training.guards.guard import Finding, Guard


class InertGrid(Guard):
    """Judges a grid by the gradient share that each setting gives the term on a real batch, before any training."""

    name = "inert_grid"
    exit_code = 2

    def on_grid(self, term: str, shares: Mapping[str, float], *, cure: str) -> Iterator[Finding]:
        """Refuse a grid that is inert as a whole.

        Args:
            shares: gradient share of ``term`` (0-1) by setting, without the reference that has no such term.
            cure: the values to take instead, in the words of the stage.
        """
        if max(shares.values()) >= INERT_SHARE:
            return
        listed = ", ".join(f"{setting} {100 * share:.2g} %" for setting, share in shares.items())
        yield self.stop(
            0,
            f"no setting of this sweep gives {term} a say, so all its runs would be the reference run again",
            evidence=f"{term} has of the gradient: {listed}; below {100 * INERT_SHARE:g} % it is inert",
            cure=cure,
        )
