# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · A neural operator for turbulence, with field and spectrum losses
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/nbhelpers/nbhelpers/blob/main/notebooks/04_neural_operator.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/nbhelpers/nbhelpers/blob/main/notebooks/04_neural_operator.ipynb)
#
# ![Vorticity of a simulated flow, and a model's rollout beside it](https://raw.githubusercontent.com/nbhelpers/nbhelpers/main/notebooks/figures/04_rollout.png)
#
# Learn one time step of a turbulent flow, then take many. A net trained on the field error alone gets the large eddies
# right and loses the small ones, because they hold little energy. A **spectrum error** sees them; given weight too early
# it spoils the field, so a **scheduler hands weight over** when the field error stops improving, and the ledger shows what
# each weight meant.
#
# **You get** a trained operator, its one-step and rollout scores beside persistence, mean and the best linear step, with
# 95 % intervals, energy spectra, a film of a rollout, what the solver would have cost, and a verdict.
#
# | profile | for | minutes | memory of a step, float32 | download |
# |---|---|---|---|---|
# | `smoke` | checking that everything works | 1 | 0.03 GB | none |
# | `quick` | a laptop or a session without GPU | 3–5 | 0.1 GB | none |
# | `t4` | a free GPU (Colab, Kaggle) | up to 60 (not measured yet) | 0.3 GB | none |
# | `full` | several sessions | – | 1.6 GB | none, or the public sets |
#
# **Data**: two-dimensional turbulence that the notebook simulates with its own solver, in the file layout of the public
# sets Inc, Tra and Iso (Kohl, Chen, Thuerey 2023), which are read as they are; so are the files of the FNO benchmark
# (Li et al. 2021). **Tested on**: Python 3.11 on a CPU.

# %% [markdown]
# ## 1 Setup
# Installs what is missing, and nothing else; then looks at this machine.

# %%
# include: ../colab_cells/setup.py

# %%
# include: ../colab_cells/mount_drive.py

# %% [markdown]
# ## 2 Settings
# Change what you like here, then run all. An empty `PROFILE` takes `t4` with a GPU and `quick` without.

# %% tags=["parameters"]
PROFILE = ""  # "smoke", "quick", "t4" or "full"
RUN_NAME = "operator"  # the same name again goes on where that run stopped
DATA_DIR = (
    ""  # empty: simulated turbulence; else a folder of sim_000000, sim_000001, …, or a .mat file of the benchmark
)
FIELDS = ""  # with your own data: e.g. "velocity,pressure"; empty: velocity
FLOW = "decaying"  # what is simulated: "decaying", "kolmogorov" or "fno" (the benchmark's box and forcing)
ROLLOUT_STEPS = 0  # steps of the rollouts that are scored; 0: the profile's
SEED = 0
RUN_ABLATION = False  # train field-only, static, scheduled and share-based losses, two seeds each (smoke: a tiny one)

# %% [markdown]
# **Your own data.** Set `DATA_DIR` to a folder with
#
# * `sim_000000/velocity_000000.npz`, `velocity_000001.npz`, …: one compressed array (`arr_0`) a frame, `(2, H, W)` for a
#   velocity and `(H, W)` for a scalar; `sim_000000/src/description.json` with the parameters, e.g.
#   `{"Reynolds Number": 1000}`; and, where there is one, `sim_000000/obstacle_mask.npz`, 1 inside the obstacle;
# * `dataset.json`: `{"set": "mine", "lengths": [Ly, Lx], "periodic": true, "frame_gap": 0.1}`. The public sets are
#   recognised without it: `nbhelpers data fetch turbulence-tra-small` gets the smallest.
#
# Frames need not be square. Splits are by simulation, so no flow is trained on and tested on.

# %%
from pathlib import Path

from nbhelpers.core.runtime import default_profile, pick_device, workspace
from nbhelpers.stages.neural_operator.config import Config, simulated

place = workspace()
profile = PROFILE or default_profile()
config = Config.for_profile(profile, seed=SEED, fields=FIELDS or "velocity")
if ROLLOUT_STEPS:
    config = config.replace({"rollout_steps": ROLLOUT_STEPS}, source="the notebook")
if DATA_DIR or FLOW != "decaying":  # where a force or a wall stands, the place matters
    config = config.replace({"coordinates": True}, source="the notebook")
config

# %% [markdown]
# ## 3 Data
# Unless you named a folder, turbulence is simulated. `decaying`: random eddies of one size in a periodic box, left to
# themselves; small ones merge, thin filaments of vorticity are drawn out between them, and the flow slowly dies.

# %%
from nbhelpers.stages.neural_operator.simulate import simulate

if DATA_DIR:
    data_dir = Path(DATA_DIR)
else:
    data_dir = place.data_dir / f"neural-operator-{FLOW}-{profile}"
    simulate(data_dir, **simulated(profile, kind=FLOW), device=pick_device())

# %% [markdown]
# Is the solver right? A flow whose solution is known: Taylor–Green vortices keep their shape and decay at a known rate.

# %%
import math

import torch

from nbhelpers.stages.neural_operator import solver
from nbhelpers.stages.neural_operator.initial import taylor_green

box, viscosity = (2 * math.pi, 2 * math.pi), 0.1
start = taylor_green((64, 64), box)
end = solver.advance(start, solver.Flow(viscosity, box), dt=0.01, steps=100)
print(f"largest error after 1 time unit: {float((end - start * math.exp(-2 * viscosity)).abs().max()):.1e}")

# %% [markdown]
# The task opens every simulation, checks that its frames are there, and splits by simulation.

# %%
from nbhelpers import widgets
from nbhelpers.stages.neural_operator import figures
from nbhelpers.stages.neural_operator.task import OperatorTask

task = OperatorTask(config, data_dir)
for remark in task.remarks():
    print("NOTE", remark)
task.describe_data()

# %% [markdown]
# Look at the data before anything else: a few flows through time.

# %%
widgets.show(figures.sample_figure(task))

# %% [markdown]
# ## 4 Baselines first
# What a forecast is worth that needs no training: the last frame again, the mean state, and the best **linear** step, fitted
# by least squares (for every wavenumber by itself in a periodic box, by dynamic mode decomposition elsewhere).

# %%
from nbhelpers.training.report import score_table

baselines = {name: task.evaluate("val", forecast).metrics for name, forecast in task.nulls.items()}
widgets.show_table(score_table(baselines, task.headlines))

# %% [markdown]
# ## 5 Model and losses
# A Fourier neural operator: pointwise layers, and between them convolutions that act on the lowest Fourier modes. It puts
# out the next state. (`predicts="change"` lets it put out the change instead, which keeps the small scales of the last
# frame; `model="ffno"` or `"unet"` are other nets behind the same interface, `divergence_free=True` projects the velocity.)

# %%
stepper = task.modules["stepper"]
print(f"{sum(p.numel() for p in stepper.parameters()):,} parameters")
stepper

# %% [markdown]
# Two losses, per frame and channel $c$, with $E_n$ the energy in shell $n$ of wavenumbers:
#
# $$\text{field error} = \frac{\langle(\hat y_c - y_c)^2\rangle}{\langle y_c^2\rangle},\qquad
# \text{spectrum error} = \operatorname{mean}_n\,(\ln \hat E_{c,n} - \ln E_{c,n})^2$$
#
# Neither depends on units. A uniform error of 10 % is a field error of 0.01; a spectrum does not see phases, so it can only
# stand beside a field error. What a weight *means* is another question: an untrained net starts with a spectrum error a
# hundred times its field error. So weights are given in units of the field error's running magnitude
# (`normalise="running"`): 0.1 means a tenth of the loss. Three configurations:

# %%
from nbhelpers.stages.neural_operator.balance import measure_balance

balance = measure_balance(task)
configurations = {
    "field error alone": config.replace({"scheduler": None}, source="the notebook"),
    "field error, and the scheduler": config,
    "older keys, taken over": config.replace(
        {"scheduler": None, "loss": {"recMSE": 1.0, "predMSE": 1.0, "spectrumError": 0.7}, "normalise": "none"},
        source="the notebook",
    ),
}
rows = [["configuration", "term", "raw", "weight", "share of the value", "share of the gradient"]]
for name, one in configurations.items():
    for entry in balance(one):
        shares = [f"{entry.value_share:.1%}", f"{entry.grad_share:.1%}"]
        rows.append([name, entry.term, f"{entry.raw:.3g}", f"{entry.weight:.3g}", *shares])
widgets.show_table(rows)

# %% [markdown]
# When does the scheduler move weight? It watches a metric of the validation; when that has not improved for `patience`
# epochs it takes a step, never in the warm-up, never past the end weight. The panel draws the earliest it could go; a plan
# that cannot finish in the run is refused.

# %%
from nbhelpers.stages.neural_operator.knobs import CHOICES, KNOBS
from nbhelpers.training.flexible import SchedulerParams, infeasible, trajectory

panel = widgets.hand_over_panel(
    config.scheduler or SchedulerParams(),
    KNOBS,
    trajectory=lambda params: trajectory(params, config.epochs),
    fits=lambda params: infeasible(params, config.epochs),
    choices=CHOICES,
)
panel

# %% [markdown]
# The next cell takes over what the panel says.

# %%
if config.scheduler is not None:
    config = config.replace({"scheduler": panel.config}, source="the panel")
task = OperatorTask(config, data_dir)
config.scheduler

# %% [markdown]
# ## 6 Train
# Everything goes to one folder, and from there to Drive if it is mounted. Press stop when you like, lose the session, run
# all again: training goes on at the very step where it was saved, the scheduler with it.
#
# **Guards** look on: test simulations in training, other units than declared, a schedule that cannot finish, a scheduler
# that nobody steps or whose weights no loss uses, layers without a gradient, a loss that is no number.

# %%
from nbhelpers.core.runtime import make_copy_dir
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run

run = open_run(task, place.output_dir, f"{RUN_NAME}-{profile}", copy_dir=make_copy_dir(place))
watched = figures.fixed_sample(task)
live = widgets.LiveFigure(lambda history: figures.live_figure(task, history, watched))
fit(task, run, on_epoch=live)

# %% [markdown]
# What the guards have said of this run; an empty list is good news. And every time the scheduler moved weight, with why.

# %%
from nbhelpers.training.guards.watch import read_guards

print(read_guards(run))
for epoch, source, target, why in task.loss_scheduler.events if task.loss_scheduler else []:
    print(f"after epoch {epoch}: field error {source:.3f}, spectrum error {target:.3f} ({why})")

# %% [markdown]
# ## 7 Evaluate
# The best checkpoint by validation among those trained with the last weights, scored once on the test simulations: one step
# ahead from true frames, and in rollouts from its own. A ✓ means that the model is better and the 95 % interval of the
# paired difference over simulations excludes 0.

# %%
from nbhelpers.training.report import LEGEND, make_report, table

report = make_report(task, run)
for remark in report["remarks"]:
    print("NOTE", remark)
widgets.show_table(table(report, task.headlines))
print(LEGEND)

# %% [markdown]
# One flow in a rollout, then the scores step by step. (The pictures of the report lie in `run.figures`.)

# %%
widgets.show(run.figures / "rollout.png")
widgets.show(run.figures / "by_step.png")

# %% [markdown]
# Where is energy lost, or made up? Spectra one step ahead and at the end of the rollouts; the bands are those of the scores.

# %%
widgets.show(run.figures / "spectrum.png")

# %% [markdown]
# What the weights were, and what they meant: the ledger's shares of the loss and of the gradient.

# %%
widgets.show(run.figures / "history.png")
widgets.show(run.figures / "ledger.png")

# %% [markdown]
# The rollout as a film.

# %%
from IPython.display import Image

from nbhelpers.stages.neural_operator.movie import rollout_movie

tested = figures.fixed_sample(task, split="test")
Image(rollout_movie(task, tested, run.figures / "rollout.gif"))

# %% [markdown]
# ## 8 Verdict
# Computed from the numbers above.

# %%
from nbhelpers.training.task import Gate

for gate in report["gates"]:
    print(Gate(**gate))
print(f"\n{report['verdict']['name'].upper()}: {report['verdict']['meaning']}\nNext: {report['verdict']['next_step']}")

# %% [markdown]
# ### Was it the schedule?
# One run cannot say. The **ablation** trains field error alone, the scheduler with several end weights, a static mix and a
# gradient share, each with several seeds, and chooses on validation.
#
# What we found in profile `quick` with two seeds (`benchmarks/results/floors/neural_operator`), so that you do not believe
# too much. On test, relative to field error alone:
#
# | | field error, one step | high-band error, one step | high-band error, step 10 of a rollout |
# |---|---|---|---|
# | scheduled, end weight 0.05 | +2 % | 0.38–0.39 | 0.19–0.36 |
# | static from the start, 0.05 | −4 to −10 % | 0.30–0.39 | 1.6–2.3 |
# | gradient share of 25 % | +1 to +3 % | 0.26–0.27 | 0.8–1.2 |
# | a gain for every shell, fitted afterwards | +4 % | 0.06 | 1.2–1.5 |
# | field error alone, but `predicts="change"` | −48 to −55 % | 0.02 | 0.1–0.4 |
#
# So any of them sharpens one step, even a filter that was never trained; it is the rollouts that tell them apart, and there
# the schedule keeps the spectrum best. And a model that puts out the **change** needs no spectral loss here: try that first.

# %%
from nbhelpers.stages.neural_operator.sweep import Grid, measure_grid, run_sweep

grid_panel = widgets.sweep_panel(
    Grid(weights=(0.05,), static=(), shares=(), seeds=(0,)) if profile == "smoke" else Grid(),
    measure_grid(OperatorTask(config, data_dir)),
    labels={"weights": "scheduled to", "static": "static", "shares": "gradient shares", "seeds": "seeds"},
    minutes=report["train_seconds"] / 60,
)
grid_panel

# %% [markdown]
# Shares are those on a batch before training. With `RUN_ABLATION = True` in section 2 the next cell trains the grid; stop it
# when you like, the next time it goes on, and a larger grid extends it.

# %%
swept = None
if RUN_ABLATION or profile == "smoke":
    ablation_dir = place.output_dir / f"{RUN_NAME}-{profile}-ablation"
    swept = run_sweep(config, grid_panel.grid, data_dir, ablation_dir, copy_dir=make_copy_dir(place))
    for gate in swept.report["gates"]:
        print(Gate(**gate))
    found = swept.report["verdict"]
    print(f"{found['name'].upper()}: {found['meaning']}\nNext: {found['next_step']}")
else:
    print("Not run: set RUN_ABLATION = True in section 2.")

# %%
from nbhelpers.stages.neural_operator.sweep_figure import sweep_figure
from nbhelpers.stages.neural_operator.sweep_verdict import DECIDED_BY
from nbhelpers.training import sweep_text

if swept and swept.finished:
    widgets.show_table(sweep_text.settings_table(swept.report))
    widgets.show_table(sweep_text.difference_table(swept.report, "test"))
    widgets.show(sweep_figure(swept.report))
    told = [
        line for line in sweep_text.effect_sentences(swept.report) if any(f" {name}:" in line for name in DECIDED_BY)
    ]
    print(*told, sep="\n")

# %% [markdown]
# ### What would the solver have cost?
# A surrogate is worth its training only where a coarse run of the solver is not as good for less. The same flows, from the
# same frames, by the solver on coarser grids: the cheapest that is as accurate as the model is what the model must beat, and
# the training must be paid back over some number of runs.

# %%
from nbhelpers.stages.neural_operator.coarse import can_compare
from nbhelpers.stages.neural_operator.cost import measure_cost
from nbhelpers.stages.neural_operator.cost_figure import cost_figure, cost_table

why_not = can_compare(task)
if why_not:
    print(f"Not measured: {why_not}")
else:
    cost = measure_cost(task, train_seconds=report["train_seconds"])
    widgets.show_table(cost_table(cost))
    widgets.show(cost_figure(cost))
    print(cost.conclusion)

# %% [markdown]
# ## 9 Save, reload, predict
# The proof that the run folder holds a working model: a fresh net with the weights from disk forecasts the same.

# %%
from nbhelpers.training import checkpoint

scored = checkpoint.at(run.folder / report["checkpoint"]["path"])
again = OperatorTask(config, data_dir)
checkpoint.load_weights(scored, again.modules)
torch.testing.assert_close(again.forecast(tested).rollout, task.forecast(tested).rollout)
print(scored.folder, scored.sha256)

# %% [markdown]
# Rollouts of the test simulations, in the layout of the data: what reads the one reads the other.

# %%
from nbhelpers.stages.neural_operator.forecast_file import FORECASTS, write_forecasts

forecasts = run.folder / FORECASTS / scored.folder.name  # a run that goes on has other forecasts
if not forecasts.exists():
    write_forecasts(task, forecasts, split="test", checkpoint=scored.sha256)
print(forecasts, *sorted(path.name for path in forecasts.iterdir())[:3], "…")

# %% [markdown]
# ## 10 Troubleshooting
#
# | what you see | what to do |
# |---|---|
# | `scheduler: the hand-over ends after epoch … at the earliest` | the message says which patience fits; or train longer |
# | `monitor_metric is …, which is no metric of this run` | choose one of those it lists |
# | `STOP leakage …` | a simulation stands in two splits, or the same one under two numbers |
# | `no rollout blows up: FAIL` | `training="unrolled"` with a longer `sequence_length`, or less spectral weight |
# | `the spectrum has a say in the loss: FAIL` | the ledger shows its share: raise the end weight, or set `spectrum_share` |
# | `… the flow is not resolved …` while simulating | a larger grid, a larger viscosity or a smaller `u_rms` |
# | `has no dataset.json and is none of the published sets` | write one, the message shows how |
# | `run folder … was started with other settings` | choose a new `RUN_NAME` |
# | `STOP out_of_memory …` | the message names the next smaller setting |
#
# **References.** FNO: Li et al. (2021), arXiv:2010.08895. F-FNO: Tran et al. (2023), arXiv:2111.13802. Data sets: Kohl, Chen,
# Thuerey (2023), arXiv:2309.01745. Pushforward: Brandstetter, Worrall, Welling (2022), arXiv:2202.03376. Binned spectral
# power: Chakraborty, Mohan, Maulik (2025), arXiv:2502.00472. Log-spectral distance: Gray and Markel (1976), IEEE TASSP 24.
# Dynamic mode decomposition: Schmid (2010), J. Fluid Mech. 656. Dealiasing: Orszag (1971), J. Atmos. Sci. 28.
