"""Rainfall cVAE: sample high-resolution rain, extremes above all, given a coarse daily weather state."""
