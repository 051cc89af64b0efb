"""From one phase to the next: what the ended one leaves behind, and what the next one starts from.

Nothing of a border is in a checkpoint: it follows from the ended phase's last checkpoint and its best one. So a run
that is killed there, or before the next phase has saved anything, crosses the border once more and comes out the same.
"""

from __future__ import annotations

from nbhelpers.core.errors import UserError
from nbhelpers.training import checkpoint, pointers
from nbhelpers.training.ledger import Balance
from nbhelpers.training.session import Session


def begin_epoch(session: Session) -> None:
    """Take back what was named at an end that is none any more, because the run goes on."""
    for which in (*_ends(session), "average"):
        pointers.forget(session.run, which)


def end_phase(session: Session) -> None:
    """Name the checkpoints of a phase that is over; they stay while the run goes on."""
    run, progress = session.run, session.progress
    best, last = (pointers.read(run, which) for which in ("best", "last"))
    if len(session.phases) == 1 or progress.epoch == progress.began_epoch or best is None or last is None:
        return
    with session.stop.held():
        for which, pointer in zip(_ends(session), (best, last), strict=True):
            pointers.write(run, which, {key: pointer[key] for key in ("step", "path", "sha256")})
        session.copy()  # also of names that were written before a kill


def next_phase(session: Session) -> None:
    """Begin the next phase: its weights, and their average, are the best ones of the phase that is over."""
    progress = session.progress
    with session.stop.held():
        if progress.epoch > progress.began_epoch:
            best = checkpoint.find(session.run, _ends(session)[0])
            if best is None:
                raise UserError(
                    f"{session.run.folder} has no best checkpoint of phase {session.phase.name!r}, which is over: "
                    f"restore {_ends(session)[0]}.json from a copy or go back to an earlier checkpoint (--resume PATH)."
                )
            checkpoint.load_weights(best, session.modules)
            if session.ema is not None:
                session.ema.restart(0)
            print(f"Phase {session.phase.name!r} is over; the next one starts from its best weights, step {best.step}.")
        progress.phase += 1
        progress.began_epoch, progress.began_step = progress.epoch, progress.step
        progress.forget_best()
        session.balance = Balance()  # its terms are others, and so is the model that their gradients are of


def _ends(session: Session) -> tuple[str, str]:
    """Names of the pointers to the running phase's best and last checkpoint."""
    return f"{session.phase.name}_best", f"{session.phase.name}_last"
