"""One training loop for all stages. It knows a ``Task`` and nothing about any stage."""
