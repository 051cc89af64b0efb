"""Stage 4: turbulence surrogates with field, spectrum and scheduled losses."""
