"""Stage 5: grounding generated optical images in what radar measured."""
