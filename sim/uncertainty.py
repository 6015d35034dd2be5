"""How sure an answer is: ``run``, ``speedup``, ``compare`` and ``plan`` with ``--uncertainty N`` (docs/uncertainty.md).

Terms of devices and engines are drawn from their intervals, times a misfit of every kind of kernel that is drawn once
a sample: with 175,000 rows the parameters alone are too sure, the misfit is what remains. Reported are the 10th, 50th
and 90th percentile, an 80 % interval. Nothing here changes a number of a question asked without it.
"""

from __future__ import annotations

from sim.uncertain.about import about
from sim.uncertain.asked import notes_of
from sim.uncertain.compared import of_difference
from sim.uncertain.curves import curve_notes, with_intervals
from sim.uncertain.ranges import BEYOND, outside
from sim.uncertain.runs import of_run
from sim.uncertain.samples import pass_factors, sampled
from sim.uncertain.summary import interval, samples_checked

__all__ = ["BEYOND", "about", "curve_notes", "interval", "notes_of", "of_difference", "of_run", "outside",
           "pass_factors", "sampled", "samples_checked", "with_intervals"]  # fmt: skip
