"""Hand loss weight over from one term to another when a metric stops improving.

Three lines in any training loop, in any framework:

    scheduler = FlexibleScheduler(SchedulerParams(source="field_error", target="spectrum_error"), epochs=100)
    weights = scheduler.get_loss_weights()  # in each epoch: {"field_error": 1.0, "spectrum_error": 0.0}
    scheduler.step(epoch, metrics)  # after each epoch, counted from 1; metrics is a mapping that has the monitored one

What the source loses the target gains. A weight says nothing about influence: 0.7 of a term that is 30 times the other
is nearly all of the loss. Look at each term's share of the gradient, or divide each term by its running magnitude.

This file needs nothing but Python, so its text can be pasted into a notebook as it stands.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MOST_STEPS = 10_000  # a hand-over in more steps than this is a mistyped step
WINDOW = 3  # values of which the middle one counts: the fewest that tell a single spike, of any size, from a trend


@dataclass(frozen=True)
class SchedulerParams:
    """When weight is handed over, how much of it, and from which term to which."""

    source: str = "field_error"  # the term that gives weight
    target: str = "spectrum_error"  # the term that receives it
    initial_weight_source: float = 1.0
    initial_weight_target: float = 0.0
    final_weight_source: float = 0.3  # both final weights are rescaled to the total of the initial ones ...
    final_weight_target: float = 0.7
    max_weight_target: float = 0.8  # ... and then the target's is cut to this
    trigger: Literal["plateau", "increase", "epoch"] = "plateau"  # not improving; getting worse; time alone
    monitor_metric: str = "field_error"  # what plateau and increase look at
    mode: Literal["min", "max"] = "min"  # whether a lower or a higher metric is better
    patience: int = 5  # epochs without improvement before each step; trigger "epoch": epochs between steps
    min_delta: float = 1e-3  # relative change of the smoothed metric that counts as better or worse
    ema_beta: float = 0.9  # memory of the smoothing, 0 for none; see FlexibleScheduler for what it costs
    transition_step: float = 0.1  # weight moved by a step
    adaptive_step: bool = True  # steps shrink, from transition_step at the start to half of it at the end
    warmup_epochs: int = 5  # the metric is smoothed from epoch 1 on, but no epoch up to this one counts as waiting
    min_epochs: int = 10  # no step before so many epochs are finished
    max_consecutive_adaptations: int = 10  # pause after so many steps in a row without improvement, until there is one

    def __post_init__(self) -> None:
        """Raise a ValueError for a field that makes no sense, or for a target that would not gain weight."""
        for name in ("source", "target", "monitor_metric"):
            self._need(name, "a name", isinstance(getattr(self, name), str) and getattr(self, name) != "")
        self._need("target", f"another term than the source {self.source!r}", self.target != self.source)
        self._need("trigger", "'plateau', 'increase' or 'epoch'", self.trigger in ("plateau", "increase", "epoch"))
        self._need("mode", "'min' or 'max'", self.mode in ("min", "max"))
        self._need("adaptive_step", "True or False", isinstance(self.adaptive_step, bool))
        for name in ("initial_weight_source", "initial_weight_target", "final_weight_source", "final_weight_target"):
            self._need(name, "a number of at least 0", _is_number(getattr(self, name)) and getattr(self, name) >= 0)
        for name in ("max_weight_target", "transition_step"):
            self._need(name, "a number above 0", _is_number(getattr(self, name)) and getattr(self, name) > 0)
        for name in ("min_delta", "ema_beta"):
            self._need(name, "a number in [0, 1)", _is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1)
        for name in ("patience", "warmup_epochs", "min_epochs", "max_consecutive_adaptations"):
            least = 0 if name in ("warmup_epochs", "min_epochs") else 1
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            self._need(name, f"a whole number of at least {least}", whole and value >= least)
        ends = self.final_weight_source + self.final_weight_target
        self._need("final_weight_source", "final weights that are not both 0", ends > 0)
        start, end = self.initial_weight_target, self.final_weights[1]
        gains = end > start * (1 + 1e-9)
        self._need("initial_weight_target", f"less than the {end:g} that rescaling and the cap leave it", gains)
        short = (end - start) / self.transition_step
        self._need("transition_step", f"a hand-over within {MOST_STEPS} steps", 2 * short <= MOST_STEPS)

    def _need(self, name: str, expected: str, holds: bool) -> None:
        if not holds:
            raise ValueError(f"SchedulerParams has {name} = {getattr(self, name)!r}, expected {expected}")

    @property
    def final_weights(self) -> tuple[float, float]:
        """Weights of source and target at the end: rescaled to the initial total, then the target's cut to its cap."""
        total = self.initial_weight_source + self.initial_weight_target
        part = self.final_weight_target / (self.final_weight_source + self.final_weight_target)
        return _weights(self, min(total * part, self.max_weight_target))

    def replace(self, changes: Mapping[str, Any], *, source: str) -> SchedulerParams:
        """A checked copy with ``changes``, which come from ``source``; one final weight alone implies the other."""
        try:
            return dataclasses.replace(self, **completed(changes))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error


def completed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` with both final weights where one is given: they are meant as parts of 1."""
    names = ("final_weight_source", "final_weight_target")
    for given, other in (names, names[::-1]):
        if other not in changes and _is_number(changes.get(given)) and 0 <= changes[given] <= 1:
            return {**changes, other: 1 - changes[given]}
    return dict(changes)


# Starting points for three kinds of flow, to be judged by validation. Each says only where it differs, and why.
PRESETS: dict[str, dict[str, Any]] = {
    # Transonic wake: shocks and vortices keep the field error falling for long, so it is given more time.
    "tra": {"patience": 8, "warmup_epochs": 10, "min_epochs": 20},
    # Slices of isotropic turbulence: what enters from the side cannot be predicted, so the field error stalls soon and
    # small scales are what is left to learn: earlier, further, in larger steps.
    "iso": {"patience": 4, "final_weight_source": 0.2, "final_weight_target": 0.8, "transition_step": 0.12},
    # Laminar wake: the shells above a few harmonics are nearly empty; a large spectral weight would chase rounding.
    "inc": {"final_weight_source": 0.5, "final_weight_target": 0.5, "min_delta": 5e-4},
}


STATE = ("epoch", "recent", "looks", "level", "reference", "waited", "in_a_row")  # saved, beside events and params


class FlexibleScheduler:
    """The weights of two loss terms as a state machine that :meth:`step` moves after each epoch.

    The metric is smoothed: the middle one of its last three values goes into an exponential moving average with
    bias correction, so one spike changes nothing. Three values are also needed before anything can count. A long memory
    tells a slow trend from noise, but is late to see that a steep fall is over: with ``min_delta`` 1e-3 some 50 epochs
    with ``ema_beta`` 0.9, 10 with 0.5. A short run with a quiet metric wants the latter.
    """

    def __init__(
        self, params: SchedulerParams, *, known_metrics: Iterable[str] | None = None, epochs: int | None = None
    ):
        """Check the plan before an epoch is spent on it.

        Args:
            known_metrics: names :meth:`step` will be given, if they are known by now.
            epochs: length of the run, if it is known.

        Raises:
            ValueError: a monitor that is not among ``known_metrics``, or a hand-over that cannot end in ``epochs``.
        """
        if known_metrics is not None and params.trigger != "epoch":
            _monitored(params.monitor_metric, known_metrics)
        if epochs is not None and (sentence := infeasible(params, epochs)):
            raise ValueError(sentence)
        self.params = params
        self.events: list[tuple[int, float, float, str]] = []  # of each step: epoch, both weights after it, and why
        self._targets = _targets(params)
        self._epoch = 0  # the last one stepped
        self._recent: list[float] = []  # up to three last finite values of the metric, a lower one being better
        self._looks = 0  # values in the average
        self._level: float | None = None  # the smoothed metric
        self._reference: float | None = None  # its best since the last step
        self._waited = 0  # epochs since that best or the last step
        self._in_a_row = 0  # steps since the last improvement

    @property
    def epoch(self) -> int:
        """The last epoch that was stepped; 0 before the first."""
        return self._epoch

    @property
    def finished(self) -> bool:
        """Whether all weight is handed over."""
        return len(self.events) == len(self._targets) - 1

    @property
    def paused(self) -> bool:
        """Whether it made so many steps in a row without improvement that it now waits for one."""
        return not self.finished and self._in_a_row >= self.params.max_consecutive_adaptations

    def get_loss_weights(self) -> dict[str, float]:
        """The weights to train with now, by term."""
        source, target = _weights(self.params, self._targets[len(self.events)])
        return {self.params.source: source, self.params.target: target}

    def step(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Look at the metrics of an epoch and move weight if it is time; returns whether the weights changed.

        A metric that is not finite is as if the epoch had not been.

        Args:
            epoch: number of epochs finished, from 1; may skip, must not repeat.
            metrics: by name; the trigger "epoch" looks at none.

        Raises:
            ValueError: an epoch that is not later than the last, or metrics without the monitored one.
        """
        params = self.params
        if not isinstance(epoch, int) or epoch <= self._epoch:
            raise ValueError(f"step got epoch {epoch!r} after epoch {self._epoch}, expected a later whole number")
        passed = epoch - max(self._epoch, params.warmup_epochs)
        if params.trigger == "epoch":
            self._waited += max(0, passed)
            due = True
        else:
            _monitored(params.monitor_metric, metrics)
            due = self._look(float(metrics[params.monitor_metric]), passed)
        self._epoch = epoch
        enough = self._waited >= params.patience and epoch >= params.min_epochs
        if not (due and enough) or self.finished or self.paused:
            return False
        source, target = _weights(params, self._targets[len(self.events) + 1])
        self.events.append((epoch, source, target, self._why()))
        self._waited, self._reference = 0, self._level
        self._in_a_row += params.trigger != "epoch"
        return True

    def _look(self, value: float, passed: int) -> bool:
        """Learn from a value, ``passed`` epochs after the last; returns whether the metric now calls for a step."""
        if not math.isfinite(value):
            return False
        self._recent = [*self._recent, value if self.params.mode == "min" else -value][-WINDOW:]
        if len(self._recent) < WINDOW:
            return False
        middle, beta = sorted(self._recent)[WINDOW // 2], self.params.ema_beta
        self._looks += 1
        if self._level is None:
            self._level = middle
        else:  # the bias-corrected average, written as an update that a constant metric leaves exactly as it is
            self._level += (middle - self._level) * (1 - beta) / (1 - beta**self._looks)
        if passed <= 0 or self._reference is None:
            self._reference = self._level
            return False
        margin = self.params.min_delta * abs(self._reference)
        if self._level < self._reference - margin:
            self._reference, self._waited, self._in_a_row = self._level, 0, 0
            return False
        self._waited += passed
        return self.params.trigger == "plateau" or self._level > self._reference + margin

    def _why(self) -> str:
        waited = f"{self._waited} epoch{'s' * (self._waited != 1)}"
        if self._level is None or self._reference is None:
            return f"{waited} passed"
        level, reference = (value if self.params.mode == "min" else -value for value in (self._level, self._reference))
        better = f"{self.params.monitor_metric} better by {100 * self.params.min_delta:.3g} %"
        return f"{waited} without {better}: {reference:.4g} to {level:.4g}, smoothed"

    def state_dict(self) -> dict[str, Any]:
        """Everything :meth:`load_state_dict` needs to go on exactly, of plain types that JSON can hold."""
        state: dict[str, Any] = {name: getattr(self, f"_{name}") for name in STATE}
        events = [list(event) for event in self.events]
        return {**state, "recent": list(self._recent), "events": events, "params": dataclasses.asdict(self.params)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another scheduler with the same parameters stood.

        Raises:
            ValueError: keys are missing or unknown, or the other one had other parameters.
        """
        expected = {*STATE, "events", "params"}
        if set(state) != expected:
            missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
            raise ValueError(f"not the state of this scheduler: it lacks {missing} and has {unknown} on top")
        own, other = dataclasses.asdict(self.params), dict(state["params"])
        differ = [
            f"{name} {other.get(name, 'missing')!r} there and {own.get(name, 'missing')!r} here"
            for name in {**own, **other}
            if own.get(name, "missing") != other.get(name, "missing")
        ]
        if differ:
            raise ValueError(f"the state is of a scheduler with other parameters: {', '.join(differ)}")
        for name in STATE:
            setattr(self, f"_{name}", state[name])
        self._recent = list(state["recent"])
        self.events = [(epoch, source, target, why) for epoch, source, target, why in state["events"]]


def earliest_finish(params: SchedulerParams) -> int | None:
    """The epoch after which all weight is handed over if the metric never improves; None if it pauses before."""
    epochs, steps = _step_epochs(params), len(_targets(params)) - 1
    return epochs[-1] if len(epochs) == steps else None


def infeasible(params: SchedulerParams, epochs: int) -> str | None:
    """Why the hand-over cannot end within a run, with the numbers and what to change; None if it can."""
    finish, steps = earliest_finish(params), len(_targets(params)) - 1
    if finish is None:
        most = params.max_consecutive_adaptations
        return (
            f"the hand-over takes {steps} steps, but pauses after {most} in a row without an improvement and may never "
            f"end: raise transition_step (now {params.transition_step:g}) or max_consecutive_adaptations to {steps}"
        )
    if finish <= epochs:
        return None
    fitting = (dataclasses.replace(params, patience=n) for n in range(min(params.patience - 1, epochs), 0, -1))
    patience = next((fit.patience for fit in fitting if (earliest_finish(fit) or math.inf) <= epochs), None)
    cure = "lower warmup_epochs or min_epochs" if patience is None else f"lower patience to {patience}"
    return (
        f"the hand-over ends after epoch {finish} at the earliest (warm-up {params.warmup_epochs}, first of {steps} "
        f"steps after epoch {_step_epochs(params)[0]}, {params.patience} epochs apart), but the run has {epochs}: "
        f"{cure}, raise transition_step (now {params.transition_step:g}), or train longer"
    )


def trajectory(
    params: SchedulerParams, epochs: int, metric: Sequence[float] | None = None
) -> list[tuple[int, float, float]]:
    """``(epoch, source's weight, target's weight)`` after each epoch from 1 to ``epochs``.

    With ``metric`` (one value per epoch) as the scheduler would move them, without it the earliest possible: as if the
    metric never improved (trigger "increase": always rose).
    """
    if metric is None:
        due, targets = _step_epochs(params), _targets(params)
        done = (sum(step <= epoch for step in due) for epoch in range(1, epochs + 1))
        return [(epoch, *_weights(params, targets[steps])) for epoch, steps in enumerate(done, start=1)]
    if len(metric) != epochs:
        raise ValueError(f"trajectory got {len(metric)} values of the metric, expected one for each of {epochs} epochs")
    scheduler, found = FlexibleScheduler(params), []
    for epoch, value in enumerate(metric, start=1):
        scheduler.step(epoch, {params.monitor_metric: value})
        found.append((epoch, *_weights(params, scheduler._targets[len(scheduler.events)])))
    return found


def _step_epochs(params: SchedulerParams) -> list[int]:
    """The epochs after which the steps are made if the metric never improves, up to the pause if there is one."""
    steps, counted_from = len(_targets(params)) - 1, params.warmup_epochs
    if params.trigger != "epoch":
        steps, counted_from = min(steps, params.max_consecutive_adaptations), max(counted_from, WINDOW)
    first = max(counted_from + params.patience, params.min_epochs)
    return [first + index * params.patience for index in range(steps)]


def _targets(params: SchedulerParams) -> list[float]:
    """The target's weight after 0, 1, 2, … steps; the last entry is the final one."""
    start, end = params.initial_weight_target, params.final_weights[1]
    targets, moved, amount = [start], 0.0, end - start
    while targets[-1] != end:
        moved += params.transition_step * (1 - moved / amount / 2 if params.adaptive_step else 1.0)
        targets.append(start + moved if moved < amount * (1 - 1e-9) else end)  # no last step as small as rounding
    return targets


def _weights(params: SchedulerParams, target: float) -> tuple[float, float]:
    # In this order the weights before the first step are exactly those given.
    return max(0.0, params.initial_weight_source - (target - params.initial_weight_target)), target


def _monitored(name: str, known: Iterable[str]) -> None:
    """Raise the error that lists what there is, the nearest first, unless ``name`` is known."""
    if name not in (names := list(known)):
        names.sort(key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
        raise ValueError(f"monitor_metric is {name!r}, which is no metric of this run, expected one of {names}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
