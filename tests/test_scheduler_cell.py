"""The scheduler's cell: the module's own text, and a demonstration that fires where nbhelpers is not installed.

After a change of the module ``python tests/test_scheduler_cell.py`` puts its text into the cell again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CELL = ROOT / "colab_cells" / "flexible_scheduler_demo.py"
MODULE = ROOT / "nbhelpers" / "training" / "flexible.py"
BEGIN, END = "# --- nbhelpers/training/flexible.py, unchanged ---\n", "\n\n# --- end of nbhelpers/training/flexible.py"


def with_module(cell: str) -> str:
    """The cell with the module's present text between its two marks."""
    before, rest = cell.split(BEGIN)
    return before + BEGIN + MODULE.read_text(encoding="utf-8") + END + rest.split(END)[1]


def test_the_cell_holds_the_module_as_it_is() -> None:
    cell = CELL.read_text(encoding="utf-8")
    assert cell == with_module(cell), "stale: run `python tests/test_scheduler_cell.py`"
    assert MODULE.read_text(encoding="utf-8") in cell


def test_the_three_lines_stand_out() -> None:
    marked = [line for line in CELL.read_text(encoding="utf-8").splitlines() if "OF 3: " in line]
    calls = (
        "scheduler = FlexibleScheduler(",
        "weights = scheduler.get_loss_weights()",
        "scheduler.step(epoch, metrics)",
    )
    for number, call in enumerate(calls, start=1):
        assert any(line.strip().startswith(call) and f"# LINE {number} OF 3" in line for line in marked)


# Runs the cell as a kernel does, where nbhelpers cannot be found and nothing is fetched; then tells what it left.
DRIVER = """
import importlib.util, json, socket, sys
def refuse(*arguments, **options):
    raise OSError("this machine has no network")
socket.create_connection = refuse
assert importlib.util.find_spec("nbhelpers") is None
space = {"__name__": "__main__"}
exec(compile(open(sys.argv[1]).read(), "cell", "exec"), space)
left = {name: space[name] for name in ("handed", "plain", "tested", "EPOCHS")}
left["sets"] = [float(space[f"{name}TRUTH"].double().sum()) for name in ("", "VAL_", "TEST_")]
left |= {"events": space["scheduler"].events, "finished": space["scheduler"].finished}
left |= {"warm_up": space["PARAMS"].warmup_epochs, "final": space["PARAMS"].final_weights}
open(sys.argv[2], "w").write(json.dumps(left))
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the cell leaves behind in a fresh interpreter with every library of this one but nbhelpers."""
    folder = tmp_path_factory.mktemp("cell")
    site = folder / "site"
    site.mkdir()
    for path in (Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")):
        for entry in path.iterdir():
            ours = "nbhelpers" in entry.name or entry.name.startswith("__editable__") or entry.suffix == ".pth"
            if not ours and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NBHELPERS"))}
    result = subprocess.run(
        [sys.executable, "-S", "-c", DRIVER, str(CELL), "left.json"],
        cwd=folder, env={**kept, "PYTHONPATH": str(site), "MPLBACKEND": "Agg"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return {**json.loads((folder / "left.json").read_text()), "said": result.stdout}


@pytest.mark.timeout(180)
def test_the_demonstration_fires_and_the_loss_uses_the_weights(left: dict[str, Any]) -> None:
    handed, plain, events = left["handed"], left["plain"], left["events"]
    assert left["finished"] and events[0][0] > left["warm_up"] and events[-1][0] < left["EPOCHS"]
    assert all(f"after epoch {epoch}:" in left["said"] for epoch, *_ in events)
    # In each epoch the weights are those of the last event before it ...
    for epoch, row in enumerate(handed, start=1):
        source, target = next(((s, t) for e, s, t, _ in reversed(events) if e < epoch), (1.0, 0.0))
        assert (row["weight_field_error"], row["weight_spectrum_error"]) == (source, target)
        assert (row["share"] > 0) == (target > 0)
    # ... and the same net, seed and batches go another way from the first event on, not before.
    first = events[0][0]
    assert handed[:first] == plain[:first]
    assert handed[first]["loss"] != plain[first]["loss"]
    assert all(row["share"] == 0 for row in plain)


def test_the_demonstration_is_worth_showing(left: dict[str, Any]) -> None:
    handed, plain = left["tested"]["handed over"], left["tested"]["field only"]
    assert handed["spectrum_error"] < 0.5 * plain["spectrum_error"]
    assert handed["field_error"] < 1.1 * plain["field_error"]


def test_what_is_reported_was_never_looked_at_before(left: dict[str, Any]) -> None:
    assert len(set(left["sets"])) == 3, "training, validation and test are three sets"
    for name, history in (("handed over", left["handed"]), ("field only", left["plain"])):
        scores = left["tested"][name]
        assert all(row["field_error"] != scores["field_error"] for row in history)
        assert all(f"{scores[error]:.4g} {name}" in left["said"] for error in scores)
    demonstration = CELL.read_text(encoding="utf-8").split(END)[1]
    inside = demonstration[demonstration.index("def train(") : demonstration.index("def draw(")]
    assert "TEST_" not in inside and "VAL_" in inside


if __name__ == "__main__":
    CELL.write_text(with_module(CELL.read_text(encoding="utf-8")), encoding="utf-8")
