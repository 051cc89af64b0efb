"""Helpers for five notebooks that train image models on weather, climate, satellite and turbulence data.

Importing this package is cheap: torch and the other heavy libraries are imported where they are used.
"""

__version__ = "0.1.0"
