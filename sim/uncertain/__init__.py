"""How sure an answer is: terms drawn from their intervals, misfit drawn once a sample, questions beyond the data."""
