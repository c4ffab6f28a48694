"""From an experiment to a finished run and its record."""
