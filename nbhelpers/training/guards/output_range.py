"""An output activation that cannot reach the target's values (G6)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from nbhelpers.training.guards.guard import Finding, Guard, Rehearsal

MAX_OUTSIDE = 0.001  # share of target values out of reach: a few extremes beyond a deliberate bound are legal
TOLERANCE = 1e-6  # in model units, for rounding

Interval = tuple[float, float, str]  # lowest and highest value that can come out, and which operation bounds them

# Names of autograd's nodes without "Backward" and number. These hand values on as they are.
TRANSPARENT = frozenset(
    "View UnsafeView ReshapeAlias Alias AsStrided Slice Select Permute Transpose T Clone ToCopy Squeeze Unsqueeze "
    "Expand Split Unbind Index IndexSelect Flip PixelShuffle Cat Stack".split()
)
BOUNDED = {
    "Relu": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softplus": (0.0, math.inf),
    "Exp": (0.0, math.inf),
    "Abs": (0.0, math.inf),
    "Sqrt": (0.0, math.inf),
    "LogSigmoid": (-math.inf, 0.0),
    "Gelu": (-0.17, math.inf),
    "Silu": (-0.2785, math.inf),
    "Hardswish": (-0.375, math.inf),
}


class OutputRange(Guard):
    """Walks back from the prediction to the operation that bounds it, and holds the target against its bounds.

    Whatever it does not know (a sum, a product, a convolution) it takes for unbounded.
    """

    name = "output_range"
    exit_code = 2

    def before(self, rehearsal: Rehearsal) -> Iterator[Finding]:
        for update, _ in rehearsal.updates:
            if update.target is None:
                continue
            output, target = update.output or (update.prediction, update.target)
            target = target.detach() if update.valid is None else target.detach()[update.valid]
            low, high, operation = reachable(output)
            outside = (target < low - TOLERANCE) | (target > high + TOLERANCE)
            if target.numel() and float(outside.float().mean()) > MAX_OUTSIDE:
                yield self.stop(
                    rehearsal.step,
                    f"the model ends in {operation}, whose values cannot reach the target",
                    evidence=f"{operation} gives {low:.6g} to {high:.6g}, the target has {float(target.min()):.6g} to "
                    f"{float(target.max()):.6g} in model units, {float(outside.float().mean()):.2%} of it outside",
                    cure="Take the activation off the model's end, or scale the field into its range.",
                )


def reachable(prediction: Tensor) -> Interval:
    """Between which values ``prediction`` must lie, judged by the operations that made it."""
    return _reachable(prediction.grad_fn)


def _reachable(node: Any) -> Interval:
    unbounded = (-math.inf, math.inf, "")
    if node is None:
        return unbounded
    operation = node.name().partition("Backward")[0]
    if operation in BOUNDED:
        return (*BOUNDED[operation], operation)
    if operation == "Elu":
        return -node._saved_alpha * node._saved_scale, math.inf, operation
    if operation == "Celu":
        return -node._saved_alpha, math.inf, operation
    # Only through what hands values on: the paths through a dense block are countless.
    parents = [parent for parent, _ in node.next_functions]
    if operation in TRANSPARENT and parents:
        lows, highs, names = zip(*map(_reachable, parents), strict=True)
        return min(lows), max(highs), " and ".join(sorted(set(names) - {""}))
    if operation in ("Clamp", "ClampMin", "ClampMax", "Hardtanh"):
        least, most = (_saved(node, end) for end in ("min", "max"))
        low, high, _ = _reachable(parents[0])
        return min(max(low, least), most), max(min(high, most), least), operation
    return unbounded


def _saved(node: Any, end: str) -> float:
    """The lower or upper limit that a clamp was given; a tensor of limits counts by its widest."""
    value = getattr(node, f"_saved_{end}", None)
    value = getattr(node, f"_saved_{end}_val", None) if value is None else value
    if value is None:
        return -math.inf if end == "min" else math.inf
    return float(getattr(value, end)()) if isinstance(value, Tensor) else float(value)
