"""The batched flow solver beside the same scheme in plain NumPy: one batch at a time, and one flow after the other."""

from __future__ import annotations

from math import pi

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import record, side_by_side

from nbhelpers.stages.neural_operator import initial, solver

BATCH, SIZE, STEPS, DT, VISCOSITY = 16, 64, 20, 0.04, 1e-3
BOX = (2 * pi, 2 * pi)

torch.set_num_threads(1)
begin = initial.decaying_turbulence(range(BATCH), (SIZE, SIZE), u_rms=0.2, peak=5.0)

n = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None]
m = np.fft.rfftfreq(SIZE, 1 / SIZE)[None]
kept = (3 * np.abs(n) < SIZE) & (3 * m < SIZE)
squared = n**2 + m**2
inverse = np.where(squared > 0, 1 / np.maximum(squared, 1), 0) * kept
half = np.exp(-VISCOSITY * squared * DT / 2)


def rate(spectrum: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """-(u dw/dx + v dw/dy) as textbooks write it: four transforms back, one forth."""
    psi = inverse * spectrum
    u, v = np.fft.irfft2(1j * n * psi), np.fft.irfft2(-1j * m * psi)
    w_x, w_y = np.fft.irfft2(1j * m * spectrum), np.fft.irfft2(1j * n * spectrum)
    advected: NDArray[np.complex128] = kept * np.fft.rfft2(-(u * w_x + v * w_y))
    return advected


def with_numpy(vorticity: NDArray[np.float64]) -> NDArray[np.float64]:
    spectrum = kept * np.fft.rfft2(vorticity)
    for _ in range(STEPS):
        first = rate(spectrum)
        second = rate(half * (spectrum + DT / 2 * first))
        third = rate(half * spectrum + DT / 2 * second)
        fourth = rate(half**2 * spectrum + DT * half * third)
        spectrum = half**2 * (spectrum + DT / 6 * first) + DT / 6 * (2 * half * (second + third) + fourth)
    after: NDArray[np.float64] = np.fft.irfft2(spectrum)
    return after


def ours() -> torch.Tensor:
    return solver.advance(begin, solver.Flow(VISCOSITY, BOX), dt=DT, steps=STEPS)


def ours_single() -> torch.Tensor:
    return solver.advance(begin.float(), solver.Flow(VISCOSITY, BOX), dt=DT, steps=STEPS)


def numpy_batch() -> NDArray[np.float64]:
    return with_numpy(begin.numpy())


def numpy_loop() -> NDArray[np.float64]:
    return np.concatenate([with_numpy(begin[member : member + 1].numpy()) for member in range(BATCH)])


expected = numpy_loop()
difference = float(np.abs(ours().numpy() - expected).max() / np.abs(expected).max())
assert difference < 1e-11, difference
np.testing.assert_allclose(numpy_batch(), expected, atol=1e-11)
seconds = side_by_side({"ours": ours, "ours_fp32": ours_single, "numpy_batch": numpy_batch, "numpy_loop": numpy_loop})
record(
    "solver",
    {
        "what": f"{STEPS} steps of {BATCH} flows of {SIZE} x {SIZE}, fp64 where not said otherwise, one thread",
        "seconds": seconds,
        "milliseconds_per_step_of_the_batch": 1e3 * seconds["ours"] / STEPS,
        "largest_relative_difference_of_the_fields": difference,
        "ratio_to_numpy_batch": seconds["numpy_batch"] / seconds["ours"],
        "ratio_to_numpy_loop": seconds["numpy_loop"] / seconds["ours"],
        "ratio_fp32_to_fp64": seconds["ours"] / seconds["ours_fp32"],
    },
)
