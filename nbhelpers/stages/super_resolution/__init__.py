"""Stage 3: super-resolution of Sentinel-2 images whose result degrades back to its input."""
