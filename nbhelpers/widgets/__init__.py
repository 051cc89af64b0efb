"""Notebook widgets. They get callables and settings, and know no model.

Only widgets that ipywidgets 7.7 (Colab) and 8.1 (Kaggle) share. Without a front end nothing is lost: a panel's
``config`` or ``grid`` is what it was given.
"""

from nbhelpers.widgets.balance import LossBalance, loss_balance
from nbhelpers.widgets.display import LiveFigure, show, show_table
from nbhelpers.widgets.grid import SweepPanel, sweep_panel
from nbhelpers.widgets.hand_over import HandOverPanel, hand_over_panel
from nbhelpers.widgets.several import SeveralPanel, settings_panel, weights_panel
from nbhelpers.widgets.swipe import Swipe, swipe
from nbhelpers.widgets.warm_up import WarmUpPanel, warm_up_panel

__all__ = [
    "HandOverPanel",
    "LiveFigure",
    "LossBalance",
    "SeveralPanel",
    "SweepPanel",
    "Swipe",
    "WarmUpPanel",
    "hand_over_panel",
    "loss_balance",
    "settings_panel",
    "show",
    "show_table",
    "sweep_panel",
    "swipe",
    "warm_up_panel",
    "weights_panel",
]
