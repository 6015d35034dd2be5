"""Measuring the machine at hand: small probes of it, and what of a hardware profile follows from them."""
