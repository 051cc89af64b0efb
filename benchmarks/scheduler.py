"""What the flexible scheduler costs: one step of it per epoch, beside a training step of 10 ms."""

from __future__ import annotations

import time

from side_by_side import record, side_by_side

from nbhelpers.training.flexible import FlexibleScheduler, SchedulerParams

STEPS, TRAINING_STEP = 2000, 0.01  # calls timed together; seconds
# Weight moves after every other epoch, all the way: more work than a real plan ever has.
PARAMS = SchedulerParams(patience=2, transition_step=7e-4, adaptive_step=False, max_consecutive_adaptations=STEPS)
metrics = {"field_error": 0.3, "spectrum_error": 2.0}


def scheduler_steps() -> None:
    scheduler = FlexibleScheduler(PARAMS)
    for epoch in range(1, STEPS + 1):
        scheduler.step(epoch, metrics)
        scheduler.get_loss_weights()


def training_step() -> None:
    """Busy for 10 ms, as a small step on one core would be."""
    end = time.perf_counter() + TRAINING_STEP
    while time.perf_counter() < end:
        pass


seconds = side_by_side({"scheduler_steps": scheduler_steps, "training_step": training_step})
per_step = seconds["scheduler_steps"] / STEPS
record(
    "scheduler",
    {
        "what": "step and get_loss_weights, once an epoch; a training step of 10 ms comes many times an epoch",
        "seconds_per_scheduler_step": per_step,
        "seconds_per_training_step": seconds["training_step"],
        "share_of_one_training_step": per_step / seconds["training_step"],
        "share_of_an_epoch_of_100_steps": per_step / (100 * seconds["training_step"]),
    },
)
