"""What every other part stands on: the machine, the data files, units and splits."""
