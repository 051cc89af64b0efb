"""The seam between stages and training: what a stage must tell ``fit``, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nbhelpers.core.fields import Field
from nbhelpers.training.flexible import FlexibleScheduler
from nbhelpers.training.metrics import Metric
from nbhelpers.training.weights import Weight

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = Any  # whatever the task's own loader yields; fit only hands it back to the task
Forecast = Any  # what the task's own evaluate scores: mostly a tensor
Predictor = Callable[[Batch], Forecast]


@dataclass(frozen=True)
class Sample:
    """What guards look at in a batch: the data as they stand in the files, not as a loss has made them."""

    raw: Mapping[str, Tensor]  # by key of `fields`: (B, …, H, W) raw values, missing ones as the files mark them
    # (B, …, H, W) twice, NaN where missing: the target brought to the input's grid, and the input that it must
    # resemble (the next frame and the last one; the degraded high resolution and the low one); None if there is none.
    pair: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class LossTerm:
    """One summand of the loss, as a function of one tensor alone: the prediction, or what ``at`` names."""

    name: str  # lower snake case; a column of history.csv and a row of the ledger
    fn: Callable[[Tensor], Tensor]  # prediction (or `at`) -> scalar, unweighted, float32
    weight: Weight  # the factor in the loss: a number, one that moves in time, or the gradient share it shall have
    # A regulariser is not judged for being inert or dominating; an adversarial term is an objective, judged alone too.
    role: Literal["objective", "regulariser", "adversarial"] = "objective"
    at: Tensor | None = None  # tensor of the graph that `fn` acts on (a KL: mean, log-variance); None: prediction
    relative_to: str | None = None  # a term in whose running magnitude this one is measured, so that 0.5 means half
    # Of a rare-event term (a mean absolute error over extremes, weighted in the prediction's units): how many samples
    # of the batch it has anything to measure on. The ledger tells with what weight it really acts. None: all of them.
    events: int | None = None


@dataclass(frozen=True)
class Update:
    """One optimizer step: a prediction that carries a graph, and the terms that judge it.

    The gradient goes into the tensors of ``optimizer`` alone: a generator's loss runs through its discriminator too.
    """

    optimizer: str  # name of one of the phase's optimizers
    prediction: Tensor  # (B, …)
    terms: tuple[LossTerm, ...]
    target: Tensor | None = None  # of the prediction's shape, in model units; None where there is no such thing
    valid: Tensor | None = None  # bool, of the target's shape: where the target was measured; None: everywhere
    # Scalar, 0-1: the share of a discriminator's decisions that are right, where this update trains one.
    accuracy: Tensor | None = None
    # What the network itself puts out and what it has to reach, where the prediction is a function of it (rain in
    # mm/day of its logarithm); None: prediction and target.
    output: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Monitor:
    """The validation metric that decides which checkpoint is best, and when it is enough."""

    metric: str
    mode: Literal["min", "max"]
    patience: int | None = None  # end the phase after this many epochs without a better one; None trains to its end
    # Epochs of the phase in which a loss is still being ramped up: patience is not counted and no checkpoint is best.
    armed_after: int = 0
    delta: float = 0.0  # by how much one has to be better for patience; any gain makes the best checkpoint
    beside: tuple[str, ...] = ()  # further validation metrics in the line that is printed after every epoch

    def better(self, value: float, than: float | None, *, by: float = 0.0) -> bool:
        """Whether ``value`` improves on ``than`` by more than ``by``; NaN never does."""
        if value != value:
            return False
        return than is None or (than - value if self.mode == "min" else value - than) > by

    @property
    def margin(self) -> str:
        """What patience asks of a better epoch, in words; empty where any gain will do."""
        return f" by more than {self.delta:g}" if self.delta else ""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own optimizers; most stages have one.

    A phase begins with the best weights of the one before. An average of the weights and a weight that rises begin
    anew with it: their time is counted in epochs of the phase.
    """

    name: str  # lower snake case; part of the names of its checkpoints, "<name>_best" and "<name>_last"
    epochs: int
    optimizers: Mapping[str, torch.optim.Optimizer]
    schedulers: Mapping[str, torch.optim.lr_scheduler.LRScheduler] = field(default_factory=dict)  # step once a step
    monitor: Monitor | None = None  # None: the task's
    keep: int = 1  # best checkpoints that stay; above 1, in a run's last phase, they are averaged when the run ends
    # By module: the share of its parameters that is meant to be trained, where most of it is frozen (adapters).
    trainable: Mapping[str, float] = field(default_factory=dict)
    prune: bool = True  # False: the checkpoints after its epochs all stay (and are not averaged for that)


@dataclass(frozen=True)
class Milestone:
    """A validation score that a run must have reached by an epoch, or it is not worth going on."""

    metric: str
    epoch: int  # finished epochs of the run; scores of earlier ones count too
    cure: str  # what to do when it was missed, a sentence
    at_least: float | None = None  # either this
    at_most: float | None = None  # or this

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"a milestone has either at_least or at_most, got {self}")


@dataclass(frozen=True)
class Spread:
    """Where the values of a field lie, in model units."""

    low: float
    high: float
    std: float


@dataclass(frozen=True)
class Dependence:
    """What a model takes from one of its inputs: its error with the input as it is, and with another sample's."""

    metric: str  # what the error is called, e.g. "crps"; lower is better
    intact: float
    shuffled: float  # the same samples, this input exchanged between them


@dataclass(frozen=True)
class Evaluation:
    """What one predictor scored on one split."""

    metrics: Mapping[str, Metric]
    spreads: Mapping[str, Spread]  # of "prediction" and of the measured "target"
    # By input, "z" for a latent and "x" for what a model is conditioned on; empty: not measured.
    dependence: Mapping[str, Dependence] = field(default_factory=dict)
    # Latent dimensions whose posterior mean varies over the split (variance above 0.01), and how many there are. They
    # say whether the posterior uses the latent, not whether prior samples differ. Burda et al. (2016), arXiv:1509.00519
    active_units: tuple[int, int] | None = None


@dataclass(frozen=True)
class Gate:
    """A named rule that a run passes or fails; ``passed`` is None when it could not be decided."""

    name: str
    passed: bool | None
    value: str  # the numbers it was decided on, in words

    def __str__(self) -> str:
        state = {True: "PASS", False: "FAIL", None: "not decided"}[self.passed]
        return f"{state}: {self.name} ({self.value})"


@dataclass(frozen=True)
class Verdict:
    """What the run amounts to and what to do next."""

    name: str
    meaning: str
    next_step: str


def monitor_of(task: Task, phase: Phase) -> Monitor:
    """By what the checkpoints of a phase are ranked."""
    return task.monitor if phase.monitor is None else phase.monitor


class Task(Protocol):
    """What ``fit`` trains. A stage implements it; ``training`` knows nothing else about a stage."""

    stage: str  # name on the command line, e.g. "perceptual-unet"
    config: Any  # frozen dataclass with `profile`, `seed`, `grad_clip`, `accumulate`, `ema_decay` and `may_change`
    fields: Mapping[str, Field]
    modules: MutableMapping[str, nn.Module]  # fit replaces the entries by accelerate's prepared ones
    phases: Sequence[Phase]
    nulls: Mapping[str, Predictor]  # predictors that need no training
    # The model itself under other conditions, scored beside it in the report: given another sample's input, say, or
    # what it is to predict. Mostly none.
    controls: Mapping[str, Predictor]
    monitor: Monitor  # of the phases that have none of their own
    loss_scheduler: FlexibleScheduler | None  # moves the terms' `Scheduled` weights; fit steps it after every epoch
    event_level: float | None  # lowest target value, in model units, that some score counts as an event; None: no such
    headlines: Sequence[str]  # metrics that lead the report
    oom_advice: Sequence[str]  # the next smaller settings, in the order to try them

    @property
    def milestones(self) -> Sequence[Milestone]:
        """Scores that a run must have reached by some epoch; mostly none."""

    def to(self, device: torch.device) -> None:
        """Place whatever the losses and metrics need (pretrained backbones, say) on ``device``."""

    def keys(self) -> Mapping[str, Mapping[str, Collection[str]]]:
        """What no two splits may share: kind of key ("event", "content", …) -> split -> keys."""

    def batches(self, split: str, epoch: int, start: int = 0) -> DataLoader:
        """Batches from number ``start`` on; their content is a pure function of (seed, split, epoch, number)."""

    def look(self, batch: Batch) -> Sample:
        """The data of a batch for the guards."""

    def unreadable(self, batch: Batch) -> Sequence[str]:
        """What was left out of the batch because it could not be read, a sentence each; mostly nothing."""

    def updates(self, batch: Batch, phase: Phase) -> Iterator[Update]:
        """The updates of one batch; fit takes a step (or gathers its gradient) before it asks for the next.

        A GAN yields the generator's and the discriminator's, each with its own optimizer; terms of different updates
        have different names, because they are columns of one history.
        """

    def evaluate(self, split: str, predictor: Predictor | None = None) -> Evaluation:
        """Scores of ``predictor`` (default: the model) on a split, with a random generator of its own."""

    def describe_data(self) -> Mapping[str, Any]:
        """Source, sha256 and split of the data, for config.json and the report."""

    def remarks(self) -> Sequence[str]:
        """What a reader of the report must know first: substitutes, simulated data, random features."""

    def judge(
        self,
        report: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        reference: Mapping[str, Any] | None = None,
    ) -> tuple[Sequence[Gate], Verdict]:
        """The stage's decision table, from a report, the run's history and perhaps the report of a reference run."""

    def figures(self, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
        """Named figures of a finished run."""
