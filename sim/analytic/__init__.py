"""Arithmetic of a forward pass: shapes, ops, devices, seconds. No clock, no queue, no luck."""
