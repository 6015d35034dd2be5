"""``decodesim app``: a page on this machine alone that answers what-if questions; Dash is imported by ``site`` only."""
