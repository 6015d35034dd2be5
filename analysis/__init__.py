"""From the raw tables of a run to answers: metrics, files, pictures. Sees tables, not simulators."""
