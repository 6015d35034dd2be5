"""The simulator held against the witness: counts, tokens, distributions and seconds, each a table with thresholds."""
