"""Cost at equal error: the solver on coarse grids, the rival that error chooses, and the arithmetic of break-even."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import turbulence
from torch import Tensor

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import coarse
from nbhelpers.stages.neural_operator.config import Config
from nbhelpers.stages.neural_operator.cost import Cost, Row, break_even, measure_cost
from nbhelpers.stages.neural_operator.cost_figure import cost_figure, cost_table
from nbhelpers.stages.neural_operator.resample import resample
from nbhelpers.stages.neural_operator.simulate import simulate
from nbhelpers.stages.neural_operator.task import OperatorTask
from nbhelpers.training.tables import md_table

STEPS = 4
SMALL = {
    "n_simulations": 12,
    "n_frames": 10,
    "viscosity": 5e-3,
    "peak": 3.0,
    "burn_in": 1.0,
    "seed": 1,
    "progress": False,
}


def make_task(data_dir: Path, **changes: Any) -> OperatorTask:
    settings = {"rollout_steps": STEPS, "eval_windows": 1, "width": 4, "modes": 4, "layers": 1, "scheduler": "none"}
    torch.set_num_threads(1)
    return OperatorTask(Config.for_profile("smoke", **(settings | changes)), data_dir)


def cost_of(task: OperatorTask, **options: Any) -> Cost:
    return measure_cost(task, **({"train_seconds": 10.0, "data_seconds": 2.0, "rounds": 1} | options))


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve decaying flows in a box that is wider than high."""
    return simulate(tmp_path_factory.mktemp("flows"), size=(32, 48), **SMALL)


@pytest.fixture(scope="module")
def cost(flows: Path) -> Cost:
    return cost_of(make_task(flows))


def test_finer_grids_are_more_accurate_and_the_stored_one_gives_the_stored_truth(cost: Cost) -> None:
    assert [row.size for row in cost.solvers] == [(8, 12), (12, 18), (16, 24), (24, 36), (32, 48)]
    errors = [row.mean_error for row in cost.solvers]
    assert errors == sorted(errors, reverse=True) and errors[0] > 3 * errors[-2]
    assert max(cost.solvers[-1].error) < 1e-3 < cost.solvers[-2].mean_error
    steps = [row.dt or 0.0 for row in cost.solvers]
    assert steps == sorted(steps, reverse=True) and 0 < steps[-1] < steps[0]
    np.testing.assert_allclose(0.7 / np.array(steps), np.round(0.7 / np.array(steps)))  # a frame is whole steps
    assert all(len(row.error) == STEPS and row.seconds > 0 for row in (cost.model, *cost.solvers))


@pytest.mark.parametrize(
    "changes",
    [
        {"fields": "vorticity"},
        {"fields": "vorticity,velocity"},
        {"sequence_length": (2, 2)},
        {"sequence_length": (3, 1), "n_in": 2},
    ],
)
def test_whatever_is_read_the_stored_grid_gives_the_stored_truth(flows: Path, changes: dict[str, Any]) -> None:
    solvers = cost_of(make_task(flows, **changes), grids=[16, 32]).solvers
    assert max(solvers[1].error) < 1e-3 < min(solvers[0].error)


def test_the_solver_is_driven_as_the_data_were(tmp_path: Path) -> None:
    root = simulate(tmp_path / "driven", kind="kolmogorov", size=32, **SMALL)
    assert max(cost_of(make_task(root), grids=[32]).solvers[0].error) < 1e-3


def test_the_models_row_is_what_the_report_scores(flows: Path) -> None:
    task = make_task(flows)
    scored = task.evaluate("val").metrics["rollout_rel_l2"].by_label
    np.testing.assert_allclose(cost_of(task, split="val", grids=[8]).model.error, scored, rtol=1e-5)


def test_model_and_solver_are_timed_on_batches_of_one_size(flows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(flows)
    seen: dict[str, list[int]] = {"model": [], "solver": []}
    task.modules["stepper"].register_forward_pre_hook(lambda _, given: seen["model"].append(len(given[0])))
    solve: Callable[..., Tensor] = coarse.solve

    def noted(task: OperatorTask, settings: Any, given: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen["solver"].append(len(given))
        return solve(task, settings, given, *rest, **more)

    monkeypatch.setattr(coarse, "solve", noted)
    cost = cost_of(task, grids=[8], batch_size=5, rounds=3)
    assert cost.batch_size == 5 and seen["solver"].count(5) == 4  # one warms up
    assert seen["model"].count(5) == 4 * STEPS
    windows = sum(len(batch.frames) for batch in task.batches("test", 0))
    assert windows != 5 and seen["solver"][:-4] == [windows]  # the errors are of the whole split


def test_simulating_the_data_is_timed_where_it_is_not_given(flows: Path) -> None:
    cost = cost_of(make_task(flows), grids=[8], data_seconds=None)
    assert 0 < cost.data_seconds < 600 and cost.train_seconds == 10.0


def row(size: int | None, error: float, seconds: float) -> Row:
    return Row(
        None if size is None else (size, size), None if size is None else 0.1, (error / 2, 3 * error / 2), seconds
    )


def by_hand(model_seconds: float) -> Cost:
    solvers = (row(16, 0.5, 0.25), row(32, 0.125, 0.75), row(48, 0.0625, 2.0), row(64, 1e-6, 1.5))
    return Cost(row(None, 0.25, model_seconds), solvers, 90.0, 10.0, 8, "cpu")


def test_the_rival_is_the_cheapest_solver_that_is_as_accurate() -> None:
    cost = by_hand(0.25)
    assert cost.rival is cost.solvers[1] and cost.speed_up == pytest.approx(3.0)
    assert cost.break_even == 200  # 100 s at half a second saved a run
    assert "3 times as fast as the solver on 32 x 32" in cost.conclusion and "after 200 runs" in cost.conclusion
    same = replace(cost, model=row(None, 0.0625, 0.25))
    assert same.rival is cost.solvers[3]  # a finer grid may be cheaper than a coarse one that is slow


@pytest.mark.parametrize(("seconds", "says"), [(0.75, "is 1 times as fast"), (1.5, "takes 2 times as long as")])
def test_a_model_as_slow_as_the_solver_never_pays_back(seconds: float, says: str) -> None:
    cost = by_hand(seconds)
    assert cost.break_even is None and cost.speed_up == pytest.approx(0.75 / seconds)
    assert says in cost.conclusion and "never pays back" in cost.conclusion


def test_no_rival_means_no_ratio() -> None:
    cost = replace(by_hand(0.25), model=row(None, 1e-7, 0.25))
    assert cost.rival is None and cost.speed_up is None and cost.break_even is None
    assert "No solver setting is as accurate" in cost.conclusion
    assert "equal error" not in md_table(cost_table(cost))


def test_break_even_is_rounded_up() -> None:
    assert break_even(101.0, 0.75, 0.25) == 202 and break_even(100.1, 0.75, 0.25) == 201
    assert break_even(100.0, 0.25, 0.25) is None and break_even(100.0, 0.25, 0.75) is None
    assert break_even(0.0, 0.75, 0.25) == 0


def test_table_and_figure_show_every_setting(cost: Cost, tmp_path: Path) -> None:
    table = cost_table(by_hand(0.25))
    assert len(table) == 6 and len({len(cells) for cells in table}) == 1
    assert [cells[0] for cells in table if "equal error" in cells[0]] == ["solver on 32 x 32 points (equal error)"]
    assert table[1][0] == "model" and table[3][-1] == "3"
    for index, one in enumerate((cost, by_hand(0.25), replace(by_hand(0.25), model=row(None, 1e-7, 0.25)))):
        path = tmp_path / f"{index}.png"
        figure = cost_figure(one)
        figure.savefig(path)
        assert path.stat().st_size > 10_000
        texts = {text.get_text() for text in figure.axes[0].texts}
        assert {f"{r.size[0]} x {r.size[1]}" for r in one.solvers if r.size} <= texts


@pytest.mark.parametrize("size", [(16, 18), (15, 13), (48, 60), (33, 41), (32, 40)])
def test_resampling_a_smooth_field_is_reading_it_elsewhere(size: tuple[int, int]) -> None:
    def waves(rows: int, columns: int) -> Tensor:
        y = 2 * torch.pi * torch.arange(rows, dtype=torch.float64)[:, None] / rows
        x = 2 * torch.pi * torch.arange(columns, dtype=torch.float64)[None] / columns
        return torch.stack([1 + torch.sin(5 * y - 3 * x), torch.cos(2 * y + 4 * x) - 0.5 * torch.sin(6 * x)])

    torch.testing.assert_close(resample(waves(32, 40), size), waves(*size), rtol=0, atol=1e-12)


def test_resampling_cuts_what_the_coarse_grid_cannot_hold() -> None:
    x = 2 * torch.pi * torch.arange(32, dtype=torch.float64) / 32
    for waves in (8, 9, 15):  # 8 is the Nyquist wave of 16 points
        assert resample(torch.cos(waves * x).expand(32, 32), (16, 16)).abs().max() < 1e-12
    highest = torch.sin(7 * x)[:, None] + torch.cos(7 * (x[:, None] + x))
    torch.testing.assert_close(resample(highest, (16, 16)), highest[::2, ::2], rtol=0, atol=1e-12)


def test_data_that_the_solver_cannot_continue_are_named(flows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grids is \[16, 64\].*4 and the 32"):
        cost_of(make_task(flows), grids=[16, 64])
    assert coarse.can_compare(make_task(flows)) is None
    own = turbulence.write_own(tmp_path / "own", 8)
    with pytest.raises(UserError, match="were not simulated by this solver"):
        cost_of(make_task(own, rollout_steps=2))
    walls = shutil.copytree(flows, tmp_path / "walls")
    record = json.loads((walls / "dataset.json").read_text()) | {"periodic": False}
    (walls / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="not periodic"):
        cost_of(make_task(walls))
    more = shutil.copytree(flows, tmp_path / "more")
    for path in more.glob("*/vorticity_*.npz"):
        shutil.copy(path, path.with_name(path.name.replace("vorticity", "pressure")))
    with pytest.raises(UserError, match="forecasts pressure, which the solver does not"):
        cost_of(make_task(more, fields="velocity,pressure"))
    why = coarse.can_compare(make_task(more, fields="velocity,pressure"))
    assert why is not None and why.startswith("The model forecasts pressure") and "\n" not in why
