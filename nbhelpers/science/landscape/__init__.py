"""Landscapes painted from materials, for the simulators of imaging stages."""
