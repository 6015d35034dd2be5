"""Figures: one function each, tables in, axes out, in one house style (docs/plots.md is the gallery).

A function ``NAME`` draws what a table holds on the ``axes`` given, or on new ones, and returns them; most have a
``NAME_table`` beside them that computes the table from the core. A table is a mapping of columns, or a pandas frame.
Matplotlib is imported when one is drawn, never before; no window opens, no global state is left changed.
"""

from __future__ import annotations

from analysis.plots.devices import (
    devices_by_year,
    devices_by_year_table,
    energy_ladder,
    energy_ladder_table,
    growth_per_year,
)
from analysis.plots.judging import mean_error_percent, predicted_measured, sensitivity, sensitivity_table
from analysis.plots.roofline import Point, roofline
from analysis.plots.service import (
    cost_per_token,
    energy_per_token,
    latencies,
    latencies_table,
    phase_bars,
    phase_bars_table,
    timeline,
    timeline_table,
    timelines,
    token_price_table,
)
from analysis.plots.slimming import (
    attention_kinds,
    bit_width,
    bit_width_table,
    hire_recall,
    hire_recall_table,
    kv_memory,
    kv_memory_table,
    matformer_line,
    matformer_table,
)
from analysis.plots.speculation import (
    expected_tokens,
    expected_tokens_table,
    medusa_sizes,
    medusa_sizes_table,
    token_tree,
    tree_table,
)
from analysis.plots.speedup import (
    alpha_gamma_table,
    speedup_contours,
    speedup_curves,
    speedup_heat,
    speedup_lines,
    tuning,
)
from analysis.plots.steps import (
    critical_batch,
    critical_batch_table,
    intensity,
    intensity_table,
    pareto,
    pareto_table,
    quadrants,
    quadrants_table,
    shares,
    shares_table,
    step_time,
    step_time_table,
    vector_matrix,
    vector_matrix_table,
)
from analysis.plots.style import SUFFIXES, house_style, new_axes, new_figure, save_figure

__all__ = [
    "SUFFIXES",
    "Point",
    "alpha_gamma_table",
    "attention_kinds",
    "bit_width",
    "bit_width_table",
    "cost_per_token",
    "critical_batch",
    "critical_batch_table",
    "devices_by_year",
    "devices_by_year_table",
    "energy_ladder",
    "energy_ladder_table",
    "energy_per_token",
    "expected_tokens",
    "expected_tokens_table",
    "growth_per_year",
    "hire_recall",
    "hire_recall_table",
    "house_style",
    "intensity",
    "intensity_table",
    "kv_memory",
    "kv_memory_table",
    "latencies",
    "latencies_table",
    "matformer_line",
    "matformer_table",
    "mean_error_percent",
    "medusa_sizes",
    "medusa_sizes_table",
    "new_axes",
    "new_figure",
    "pareto",
    "pareto_table",
    "phase_bars",
    "phase_bars_table",
    "predicted_measured",
    "quadrants",
    "quadrants_table",
    "roofline",
    "save_figure",
    "sensitivity",
    "sensitivity_table",
    "shares",
    "shares_table",
    "speedup_contours",
    "speedup_curves",
    "speedup_heat",
    "speedup_lines",
    "step_time",
    "step_time_table",
    "timeline",
    "timeline_table",
    "timelines",
    "token_price_table",
    "token_tree",
    "tree_table",
    "tuning",
    "vector_matrix",
    "vector_matrix_table",
]
