"""What sweeps and plans are made of: points, what is kept of them, and the steps of a search."""
