"""Training of the shipped family of small models: `python -m sim.reference.training --out DIR`.

What it is: the seeded recipe that made the weights under `sim/reference/family/`, and the script that measures them.
What it is not: a part of any simulation. Nothing here is imported by the executor or by the simulator. The stages need
the optional extras `torch`, `safetensors` and `tokenizers`; `configs`, `corpus` and `packing` need NumPy alone.
"""
