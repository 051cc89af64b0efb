"""G14: a checkpoint chosen by how well it gives back what it was shown."""

from __future__ import annotations

from collections.abc import Iterator

from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal
from nbhelpers.training.task import monitor_of

POSTERIOR = "posterior_"  # begins the keys of all metrics of posterior samples


class Reconstruction(Guard):
    """Refuses to select by metrics of posterior samples: they are drawn with the target in view, near copies of it."""

    name = "reconstruction"
    exit_code = 2

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        metric = monitor_of(rehearsal.task, rehearsal.phase).metric
        if metric.startswith(POSTERIOR):
            yield self.stop(
                rehearsal.step,
                "posterior samples have seen the target: select on prior samples",
                evidence=f"the monitor of phase {rehearsal.phase.name!r} is {metric!r}",
                cure=f"Set the monitor to {metric.removeprefix(POSTERIOR)!r}, or another metric of prior samples.",
            )
