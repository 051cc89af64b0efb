"""Numerics that two or more stages share; they know fields, and no stage."""
