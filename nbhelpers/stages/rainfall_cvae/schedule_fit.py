"""Whether β's rise, the epochs and early stopping go together: what the schedule guard will say, before a run."""

from __future__ import annotations

from nbhelpers.stages.rainfall_cvae.config import Config


def fits(config: Config) -> tuple[bool, str]:
    """Whether the run is legal, and a sentence on what follows from its lengths.

    The rules are those of :class:`~nbhelpers.training.guards.schedule.Schedule`: β stands before the run ends, some
    epoch counts, patience is not counted while β rises, and it can run out before the run ends.
    """
    rise, epochs = config.warmup_epochs if config.d_z else 0, config.epochs
    armed, patience = config.armed, config.early_stopping_patience
    if rise > epochs:
        return False, f"warm-up {rise:g} does not fit into {epochs} epochs: shorten it or train for longer"
    if armed >= epochs:
        return False, f"no epoch counts: checkpoints are ranked after epoch {armed}, and the run has {epochs}"
    if patience is not None and armed < rise:
        return False, f"stopping is armed at epoch {armed}, inside the warm-up, which ends at epoch {rise:g}"
    if patience is not None and armed + patience >= epochs:
        return False, (
            f"early stopping can never act: armed after epoch {armed} with a patience of {patience}, in {epochs} epochs"
        )
    said = f"fits: {epochs - rise:g} epochs after the warm-up" if rise else f"fits: {epochs} epochs without a warm-up"
    if armed < rise:
        said += f"; but checkpoints are ranked from epoch {armed} on, inside the warm-up, when their loss is another"
    return True, said
