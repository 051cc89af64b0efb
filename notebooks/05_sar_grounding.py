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
# # 05 · Ground optical images with SAR
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/nbhelpers/nbhelpers/blob/main/notebooks/05_sar_grounding.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/nbhelpers/nbhelpers/blob/main/notebooks/05_sar_grounding.ipynb)
#
# ![Sentinel-1, the image to refine, the refined one, the truth, both errors, and where structure agrees with the SAR](https://raw.githubusercontent.com/nbhelpers/nbhelpers/main/notebooks/figures/05_tiles.png)
#
# An earlier step made an optical tile (`opt_v2`: generated, cloud-filled, sharpened). A radar has seen the same place
# through the clouds. Refine the tile to `opt_v3`, so that its structure agrees with the SAR image and its colours stay
# plausible; by a compact generator, or by TerraMind with LoRA.
#
# Such a model can look grounded and not be: a score of edges that gives 0.79 to pure noise, an adapter without gradients,
# a missing input replaced by the truth. Here the score's chance level is 0.5 and is measured, every evaluation asks whether
# *this* tile's SAR matters, and a missing file is an error.
#
# **You get** a trained model, its PSNR, SSIM, SAM, LPIPS, NDVI error and agreement beside those of the image it was given,
# with 95 % intervals over places, the same with another tile's SAR and with none, and a verdict.
#
# | profile | for | minutes | tiles | memory of a step, float32 | download |
# |---|---|---|---|---|---|
# | `smoke` | checking that everything works | 1 | 56 of 48 × 48 | 0.05 GB | 5 MB |
# | `quick` | a laptop or a session without GPU | 5–10 | 480 of 64 × 64 | 0.1 GB | 5 MB |
# | `t4` | a free GPU (Colab, Kaggle) | up to 60 (not measured yet) | 1,600 of 128 × 128 | 0.4 GB | 240 MB of network weights |
# | `full` | several sessions | – | 4,800 of 128 × 128 | 0.1 GB, one tile at a time | as `t4` |
#
# Downloaded are the weights of the network that LPIPS looks through. TerraMind needs more of everything: see section 2.
#
# **Data**: scenes that the notebook simulates, or pairs of Sentinel-1 and Sentinel-2 of your own. **Tested on**: Python 3.11
# on a CPU.

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
RUN_NAME = "grounding"  # the same name again goes on where that run stopped
DATA_DIR = ""  # empty: simulated scenes; else a folder with tiles/train, tiles/val and tiles/test
STAGE2_DIR = ""  # folder with the images of the previous step, tile_XXX.npz; empty: simulated ones, or a proxy
MODEL = "compact"  # or "terramind-backbone", "terramind-tokens": see below
LPIPS_WEIGHTS = "imagenet"  # downloaded once; or the path of a weight file; or "random" (the report will say so)
SEED = 42

# %% [markdown]
# **Your own data.** `nbhelpers data prepare tiles` makes tiles from BigEarthNet pairs (`--s1 DIR --s2 DIR`) or from pairs of
# GeoTIFFs. All have one size, which may be any from 42 pixels on: `tile_size` cuts crops for training out of larger tiles,
# smaller ones are used whole. Without `STAGE2_DIR` real tiles are refined from a *proxy*, the truth with noise, which the
# report says in its first line.

# %%
import os
from pathlib import Path

from nbhelpers.core.runtime import default_profile, workspace
from nbhelpers.stages.sar_grounding.config import SIMULATED, Config

place = workspace()
profile = PROFILE or default_profile()
lpips_weights = os.environ.get("NBHELPERS_BACKBONE_WEIGHTS", LPIPS_WEIGHTS)
config = Config.for_profile(profile, seed=SEED, model=MODEL, stage2_dir=STAGE2_DIR or None, lpips_weights=lpips_weights)
config

# %% [markdown]
# **TerraMind** needs a GPU and its weights from the Hugging Face hub: about 1 GB for `base`, and for `terramind-tokens` 1.2 GB
# more, of the tokenizer. That route also needs tiles with all 12 bands, which the simulated ones do not have. On Colab and
# Kaggle this cell installs what is missing, on a machine of your own it says how; with `compact` it does nothing.

# %%
if MODEL != "compact":
    from nbhelpers.stages.sar_grounding.terramind_install import install

    print(install())

# %% [markdown]
# ## 3 Data
# Unless you named a folder, scenes are simulated: one land cover, seen by Sentinel-2's camera and by Sentinel-1's radar with
# its speckle; and an `opt_v2` that has lost structure which the radar still shows.

# %%
from nbhelpers.stages.sar_grounding.simulate import simulate

if DATA_DIR:
    data_dir = Path(DATA_DIR)
else:
    data_dir = place.data_dir / f"sar-grounding-{profile}"
    simulate(data_dir, seed=0, **SIMULATED[profile])

# %% [markdown]
# The task opens every tile, holds its numbers against the units that it declares, and refuses places that stand in two
# splits and images that are the truth by another name.

# %%
from nbhelpers import widgets
from nbhelpers.stages.sar_grounding.task import GroundingTask

task = GroundingTask(config, data_dir)
for remark in task.remarks():
    print("NOTE", remark)
task.describe_data()

# %% [markdown]
# Look at the data before anything else.

# %%
from nbhelpers.stages.sar_grounding.figures import data_figure, examples

watched = examples(task, "val")
widgets.show(data_figure(task, watched))

# %% [markdown]
# ## 4 Baselines first
# The image as it was given (`opt_v2`): what a model has to beat. The same with a factor and a summand for each band that fit
# the training tiles best (`recoloured`): what mended colours alone are worth. The mean image: the least that one can know.
# Agreement with the SAR image is centred on chance, so that the mean image has 0.5.

# %%
from nbhelpers.training.report import score_table

baselines = {name: task.evaluate("val", predictor).metrics for name, predictor in task.nulls.items()}
widgets.show_table(score_table(baselines, task.headlines))

# %% [markdown]
# ## 5 Model and losses
# `compact`: two encoders, one for backscatter and one for reflectance; cross-attention from optical to SAR features; a
# denoiser that draws the residual `truth − opt_v2` in a few steps. `terramind-backbone`: TerraMind's encoder with LoRA on both
# images, and a decoder that makes the residual in one pass. Untrained both return `opt_v2`. `terramind-tokens`: TerraMind
# with LoRA draws the tokens of the true image, which its tokenizer decodes in `timesteps` steps.

# %%
generator = task.modules["generator"]
print(f"{sum(p.numel() for p in generator.parameters()):,} parameters, {len(task.tiles.split['train'])} training tiles")
generator

# %% [markdown]
# $$L = \alpha\,L_\text{SAR} + \beta\,L_\text{cycle} + \gamma\,L_\text{identity} + \delta\,\text{LPIPS} +
# \varepsilon\,L_\text{spectral}$$
#
# Structure that correlates with the SAR image; closeness to `opt_v2`; the same where the SAR has nothing to say; likeness in
# the eyes of a network; and the error against the truth. Move the weights (at its left end a slider is off): what they mean
# on a real batch, for an image halfway from `opt_v2` to the truth. Of `terramind-tokens` none of this holds: its loss is one
# term, the cross-entropy of the tokens, and the panel has nothing to weigh.

# %%
from nbhelpers.stages.sar_grounding.balance import measure_balance, weight_knobs

panel = widgets.weights_panel(config, measure_balance(task), weight_knobs(config))
panel

# %% [markdown]
# Time steps, rank and batch size: what is trained, and what a step takes.

# %%
from nbhelpers.stages.sar_grounding.size import SIZE_KNOBS, measure_size

size_panel = widgets.settings_panel(panel.config, measure_size(task), SIZE_KNOBS)
size_panel

# %% [markdown]
# The next cell takes over what the panels say (move the weights first: the second panel started from what they were).

# %%
chosen = {knob.field: getattr(panel.config, knob.field) for knob in weight_knobs(config)}
chosen |= {knob.field: getattr(size_panel.config, knob.field) for knob in SIZE_KNOBS}
config = config.replace(chosen, source="the panels")
task = GroundingTask(config, data_dir, like=task)

# %% [markdown]
# ## 6 Train
# Everything goes to one folder, and from there to Drive if it is mounted. Press stop when you like, lose the session, run
# all again: training goes on at the very step where it was saved.
#
# **Guards** look on: units, copies between splits, a model that ignores the SAR, adapters without gradient, a frozen base
# that moved, terms that are inert or drowning.

# %%
from nbhelpers.core.runtime import make_copy_dir
from nbhelpers.stages.sar_grounding.figures import live_figure
from nbhelpers.training.fit import fit
from nbhelpers.training.opening import open_run

run = open_run(task, place.output_dir, f"{RUN_NAME}-{profile}", copy_dir=make_copy_dir(place))
live = widgets.LiveFigure(lambda history: live_figure(task, history, watched))
fit(task, run, on_epoch=live)

# %% [markdown]
# What the guards have said of this run; an empty list is good news.

# %%
from nbhelpers.stages.sar_grounding.figures import curves_figure
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.history import read_rows

print(read_guards(run))
widgets.show(curves_figure(task, read_rows(run.history_file)))

# %% [markdown]
# ## 7 Evaluate
# The best checkpoint by validation, scored once on the test places. A ✓ means that the model is better and the 95 % interval
# of the paired difference over places excludes 0. Two rows are the model itself, with another tile's SAR image and with a flat
# one: *is the SAR used?*

# %%
from nbhelpers.training.report import LEGEND, make_report, table

report = make_report(task, run)
for remark in report["remarks"]:
    print("NOTE", remark)
widgets.show_table(table(report, task.headlines))
print(LEGEND)

# %%
widgets.show(run.figures / "tiles.png")  # these and the other pictures of the report lie in run.figures
widgets.show(run.figures / "scores.png")

# %% [markdown]
# What the terms contributed: the ledger's shares of the loss and of the gradient.

# %%
widgets.show(run.figures / "ledger.png")

# %% [markdown]
# ## 8 Verdict
# Computed from the numbers above.

# %%
from nbhelpers.training.task import Gate

for gate in report["gates"]:
    print(Gate(**gate))
print(f"\n{report['verdict']['name'].upper()}: {report['verdict']['meaning']}\nNext: {report['verdict']['next_step']}")

# %% [markdown]
# ## 9 Save, reload, predict
# The proof that the run folder holds a working model: a fresh task with the weights from disk makes the same images.

# %%
import torch

from nbhelpers.training import checkpoint

scored = checkpoint.at(run.folder / report["checkpoint"]["path"])
again = GroundingTask(config, data_dir, like=task)
checkpoint.load_weights(scored, again.modules)
torch.testing.assert_close(again.refine(watched), task.refine(watched))
print(scored.folder, scored.sha256)

# %% [markdown]
# **Adapters alone.** A model with LoRA is a frozen base and a small change to it, which is written here by itself (what
# TerraMind has beside its adapters, a decoder, stands in the checkpoint). `adapted = load_adapters(base, path)` puts it on
# the same base again, and refuses another; `adapted.merged()` is a plain network with the change added to its weights.
#
# The compact model gets LoRA too, on the frozen weights of an earlier run:
# `config.replace({"base": str(scored.folder)}, source="here")`, and a new `RUN_NAME`.

# %%
from nbhelpers.stages.sar_grounding.adapters import Adapted

adapted = [part for part in again.modules["generator"].modules() if isinstance(part, Adapted)]
for part in adapted:
    part.save(run.folder / "adapters.safetensors")
    print(run.folder / "adapters.safetensors", *part.remarks(), sep="\n")
if not adapted:
    print("No adapters: all weights are trained, and stand in the checkpoint.")

# %% [markdown]
# Tiles of your own, of any size, as NPZ or GeoTIFF:
#
# `nbhelpers predict sar-grounding --run-name NAME --input-dir TILES --format geotiff --to OUT`

# %% [markdown]
# ## 10 Troubleshooting
#
# | what you see | what to do |
# |---|---|
# | `… declares reflectance but holds …`, `… declares S1 in dB but holds …` | say in the tile's JSON what the numbers are, or convert them; the message says which |
# | `block … is in two splits`, `… show the same ground near …` | tiles that lie near each other belong into one split and one block |
# | `… is the true S2 image itself, which leaks the answer into the input` | the previous step's file holds the target: write its own output there |
# | `… The token route learns from all 12 bands of level 2A …` | prepare tiles from images that have them, or `MODEL = "terramind-backbone"` |
# | `ImageNet weights … cannot be fetched` | no internet: attach the weight file and set `LPIPS_WEIGHTS` to its path; or `"random"` |
# | `TerraMind comes with terratorch, which cannot be imported here (No module named 'terratorch')` | run the cell on TerraMind in section 2; on a machine of your own `pip install 'nbhelpers[terramind]'` |
# | `the weights of terramind_… could not be fetched from the Hugging Face hub` | switch the internet on, or put the hub's files in `$HF_HOME` |
# | `WARN latent …: The model ignores sar` | nothing is missing in `opt_v2` that a radar could tell, or `sar_weight` is too low |
# | `AGREEMENT FLAT`, `PAINTS THE SAR`, `DIVERGES` in section 8 | what its line `Next:` says; for a flat agreement also the preset `sar_focus` |
# | `STOPPED · out_of_memory` | what the message lists for these settings: halve `batch_size` and double `grad_accum`, `tile_size` 96 where tiles are larger, `lpips_weight` 0; with LoRA a lower `lora_rank`. Time steps cost training no memory |
# | slow | `timesteps` 8: scoring and predicting with the compact model make that many passes, training makes one; a smaller profile; a larger `grad_accum`, which makes fewer steps |
# | `run folder … was started with other settings` | choose a new `RUN_NAME` |
#
# **References.** Diffusion by predicting the clean image: Salimans and Ho (2022), arXiv:2202.00512. DDIM: Song et al. (2021),
# arXiv:2010.02502. LoRA: Hu et al. (2021), arXiv:2106.09685. TerraMind: Jakubik et al. (2025), arXiv:2504.11171. LPIPS: Zhang
# et al. (2018), arXiv:1801.03924. Spectral angle: Kruse et al. (1993), Remote Sens. Environ. 44.
