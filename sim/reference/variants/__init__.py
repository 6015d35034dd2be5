"""Variants that really run, one a file: ``variants/NAME.py`` does to a NumPy model what variant NAME says it costs."""
