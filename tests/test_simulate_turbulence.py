"""Simulated turbulence: its files, its statistics, and the care taken with folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator import solver
from nbhelpers.stages.neural_operator.simulate import simulate

SMALL = {
    "n_simulations": 5,
    "size": (32, 48),
    "n_frames": 3,
    "viscosity": 5e-3,
    "peak": 3.0,
    "burn_in": 1.0,
    "seed": 1,
    "progress": False,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(folder: Path, field: str, simulation: int, frame: int) -> NDArray[np.float32]:
    with np.load(folder / f"sim_{simulation:06d}" / f"{field}_{frame:06d}.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        values: NDArray[np.float32] = file["arr_0"]
        return values


def set_of(folder: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads((folder / "dataset.json").read_text())
    return facts


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("flows"), batch=5, **SMALL)


def test_files_are_those_of_the_layout_and_nothing_else(flows: Path) -> None:
    frames = {f"{field}_{frame:06d}.npz" for field in ("velocity", "vorticity") for frame in range(3)}
    expected = {f"sim_{number:06d}/{name}" for number in range(5) for name in frames | {"src/description.json"}}
    assert set(contents(flows)) == expected | {"dataset.json"}
    for number in range(5):
        velocity, vorticity = read(flows, "velocity", number, 2), read(flows, "vorticity", number, 2)
        assert velocity.shape == (2, 32, 48) and vorticity.shape == (32, 48)
        assert velocity.dtype == vorticity.dtype == np.float32
        again = solver.vorticity_of(torch.from_numpy(velocity).double(), (2 * np.pi, 3 * np.pi))
        np.testing.assert_allclose(again, vorticity, atol=1e-5)
        described = json.loads((flows / f"sim_{number:06d}/src/description.json").read_text())
        assert described["Reynolds Number"] == pytest.approx(0.2 * 2 * np.pi / 5e-3)


def test_dataset_json_says_what_the_set_is(flows: Path) -> None:
    facts = set_of(flows)
    expected = {
        "set": "decaying",
        "simulated": True,
        "periodic": True,
        "frame_gap": 0.7,
        "viscosity": 5e-3,
        "seed": 1,
        "n_simulations": 5,
        "n_frames": 3,
        "size": [32, 48],
        "u_rms": 0.2,
        "burn_in": 1.0,
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["lengths"] == pytest.approx([2 * np.pi, 3 * np.pi])
    for field, channels in (("velocity", 2), ("vorticity", 1)):
        values = np.stack([read(flows, field, s, t) for s in range(5) for t in range(3)]).astype(np.float64)
        values = values.reshape(15, channels, -1)
        stored = facts["normalisation"][field]  # type: ignore[index]
        np.testing.assert_allclose(stored["mean"], values.mean((0, 2)), atol=1e-12)
        np.testing.assert_allclose(stored["std"], values.std((0, 2)), rtol=1e-9)


def test_frames_follow_from_one_another_by_the_solver(flows: Path) -> None:
    first = torch.from_numpy(read(flows, "vorticity", 3, 0)).double()[None]
    flow = solver.Flow(5e-3, (2 * np.pi, 3 * np.pi))
    then = solver.advance(first, flow, dt=0.7 / 40, steps=80)[0]
    np.testing.assert_allclose(then, read(flows, "vorticity", 3, 2), atol=2e-5)
    assert float((then - first).abs().max()) > 0.1


def test_flows_do_not_depend_on_the_batch_or_their_number(flows: Path, tmp_path: Path) -> None:
    simulate(tmp_path, batch=2, **{**SMALL, "n_simulations": 3})
    for number in range(3):
        for frame in range(3):
            for field in ("velocity", "vorticity"):
                np.testing.assert_allclose(
                    read(tmp_path, field, number, frame), read(flows, field, number, frame), atol=1e-6
                )


def test_a_finished_folder_is_left_alone(flows: Path) -> None:
    before = contents(flows)
    times = {path: path.stat().st_mtime_ns for path in flows.rglob("*")}
    simulate(flows, batch=3, **SMALL)
    assert contents(flows) == before
    assert {path: path.stat().st_mtime_ns for path in flows.rglob("*")} == times


def test_an_interrupted_simulation_is_finished(flows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = solver.frames, []

    def killed(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) > 3:  # each batch calls twice: burn-in and frames
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(solver, "frames", killed)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, batch=2, **SMALL)
    monkeypatch.undo()
    assert (tmp_path / "sim_000001").is_dir() and not (tmp_path / "sim_000002").exists()
    assert not (tmp_path / "dataset.json").exists()
    with pytest.raises(UserError, match=r"holds flows with seed=1 \(asked: 2\).*another folder"):
        simulate(tmp_path, **{**SMALL, "seed": 2})
    (tmp_path / "sim_000001/src/description.json").write_text("")  # as a full disk leaves it
    kept = (tmp_path / "sim_000000/velocity_000000.npz").stat().st_mtime_ns
    simulate(tmp_path, batch=5, **SMALL)
    assert (tmp_path / "sim_000000/velocity_000000.npz").stat().st_mtime_ns == kept
    assert set(contents(tmp_path)) == set(contents(flows))
    finished = (tmp_path / "dataset.json").read_bytes()
    (tmp_path / "dataset.json").rename(tmp_path / "simulating.json")  # killed while the statistics were taken
    simulate(tmp_path, batch=5, **SMALL)
    assert (tmp_path / "dataset.json").read_bytes() == finished
    for name, content in contents(flows).items():
        if name.endswith("description.json"):
            assert (tmp_path / name).read_bytes() == content
    np.testing.assert_allclose(read(tmp_path, "velocity", 4, 2), read(flows, "velocity", 4, 2), atol=1e-6)
    assert set_of(tmp_path)["normalisation"]["velocity"]["std"] == pytest.approx(  # type: ignore[index]
        set_of(flows)["normalisation"]["velocity"]["std"]  # type: ignore[index]
    )


def test_a_folder_with_anything_else_is_refused_untouched(flows: Path, tmp_path: Path) -> None:
    (tmp_path / "sim_000000").mkdir()
    (tmp_path / "sim_000000/velocity_000000.npz").write_bytes(b"real data")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds sim_000000 but no simulated flows.*empty folder"):
        simulate(tmp_path, **SMALL)
    (tmp_path / "dataset.json").write_text('{"set": "Tra"}')
    with pytest.raises(UserError, match=r"set=Tra \(asked: decaying\)"):
        simulate(tmp_path, **SMALL)
    (tmp_path / "dataset.json").write_text("oops")
    with pytest.raises(UserError, match="dataset.json is not JSON"):
        simulate(tmp_path, **SMALL)
    (tmp_path / "dataset.json").unlink()
    assert contents(tmp_path) == before
    before = contents(flows)
    with pytest.raises(UserError, match=r"viscosity=0\.005 \(asked: 0\.004\)"):
        simulate(flows, **{**SMALL, "viscosity": 4e-3})
    assert contents(flows) == before
    with pytest.raises(UserError, match="is a file"):
        simulate(flows / "dataset.json", **SMALL)


def test_an_unresolved_flow_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    quick = {"n_simulations": 1, "n_frames": 1, "size": 64, "progress": False}
    with pytest.raises(UserError, match=r"64 x 64 points do not resolve the flow at viscosity 0\.001.*finer grid"):
        simulate(tmp_path / "rough", u_rms=1.0, **quick)
    assert not (tmp_path / "rough").exists()
    simulate(tmp_path / "fine", u_rms=0.2, **quick)
    vorticity = torch.from_numpy(read(tmp_path / "fine", "vorticity", 0, 0)).double()[None]
    assert 1e-4 < float(solver.tail_share(vorticity)) < solver.LARGEST_TAIL  # filled, and falling
    with pytest.raises(UserError, match=r"crosses .* cells in a step of .* set dt to 0\.\d+ or less"):
        simulate(tmp_path / "hasty", u_rms=0.2, dt=0.35, **quick)


def test_kolmogorov_flow_stays_alive_near_its_speed(tmp_path: Path) -> None:
    simulate(tmp_path, **{**SMALL, "kind": "kolmogorov", "n_simulations": 2, "size": 32, "burn_in": 50.0})
    speeds = [np.sqrt(np.square(read(tmp_path, "velocity", s, t)).sum(0).mean()) for s in range(2) for t in range(3)]
    assert min(speeds) > 0.1 and max(speeds) < 0.3
    assert set_of(tmp_path)["set"] == "kolmogorov"


def test_fno_benchmark_is_recorded_every_time_unit_on_every_nth_point(tmp_path: Path) -> None:
    options = {"kind": "fno", "n_simulations": 1, "n_frames": 3, "viscosity": 1e-3, "progress": False}
    simulate(tmp_path / "coarse", size=16, solve_size=32, **options)
    simulate(tmp_path / "fine", size=32, solve_size=32, **options)
    for frame in range(3):
        fine = read(tmp_path / "fine", "vorticity", 0, frame)
        np.testing.assert_array_equal(read(tmp_path / "coarse", "vorticity", 0, frame), fine[::2, ::2])
    facts = set_of(tmp_path / "coarse")
    assert (facts["lengths"], facts["burn_in"], facts["frame_gap"]) == ([1.0, 1.0], 1.0, 1.0)
    speed = torch.from_numpy(read(tmp_path / "coarse", "velocity", 0, 2)).double()
    assert float(solver.divergence(speed, (1.0, 1.0)).abs().max()) < 1e-4 * float(
        solver.vorticity_of(speed, (1.0, 1.0)).abs().max()
    )
    again = solver.advance(
        torch.from_numpy(read(tmp_path / "fine", "vorticity", 0, 0)).double()[None],
        solver.Flow(1e-3, (1.0, 1.0), forcing=solver.fno_forcing),
        dt=0.01,
        steps=200,
    )
    np.testing.assert_allclose(again[0], read(tmp_path / "fine", "vorticity", 0, 2), atol=1e-5)


def test_a_finer_solution_is_cut_to_the_spectrum_of_the_stored_grid(tmp_path: Path) -> None:
    options = {**SMALL, "n_simulations": 1, "n_frames": 1}
    simulate(tmp_path / "cut", **{**options, "solve_size": (64, 96)})
    simulate(tmp_path / "whole", **{**options, "size": (64, 96)})
    cut, whole = read(tmp_path / "cut", "vorticity", 0, 0), read(tmp_path / "whole", "vorticity", 0, 0)
    assert cut.shape == (32, 48)
    spectra = [np.fft.rfft2(field, norm="forward") for field in (cut, whole)]
    for rows in (slice(0, 16), slice(-15, None)):
        np.testing.assert_allclose(spectra[0][rows, :24], spectra[1][rows, :24], atol=1e-7)
    assert np.abs(spectra[0][16]).max() < 1e-7 and np.abs(spectra[0][:, 24]).max() < 1e-7


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "forced"}, "kind is 'forced', expected one of decaying, kolmogorov, fno"),
        ({"n_simulations": 0}, "n_simulations is 0, expected at least 1"),
        ({"size": 8}, "size is 8, expected at least 16"),
        ({"n_frames": 0}, "n_frames is 0"),
        ({"burn_in": -1.0}, "burn_in is -1.0"),
        ({"viscosity": 0.0}, "viscosity is 0.0, expected a positive number"),
        ({"u_rms": -0.2}, "u_rms is -0.2"),
        ({"dt": float("nan")}, "dt is nan"),
        ({"batch": 0}, "batch is 0"),
        ({"kind": "fno"}, "size is 32 x 48, expected a square"),
        ({"kind": "fno", "size": 32, "solve_size": 48}, "solve_size is 48 x 48 .* whole multiple"),
        ({"solve_size": 64}, "solve_size is 64 x 64 for a size of 32 x 48, expected a grid of the same shape"),
    ],
)
def test_impossible_settings_are_named(change: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        simulate(tmp_path / "flows", **{**SMALL, **change})
    assert not (tmp_path / "flows").exists()
