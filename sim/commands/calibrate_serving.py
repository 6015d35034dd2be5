"""``decodesim calibrate --serving FILE...``: engine and device terms from results of a serving benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sim import show
from sim.calibration.serving_fit import Fitted, fit_service
from sim.calibration.serving_points import fittable
from sim.calibration.serving_profile import errors, profile, save, series
from sim.commands.bar import bar
from sim.silicon.plots import pictures
from sim.silicon.user_points import service_of

__all__ = ["calibrate"]


def calibrate(
    files: Sequence[str], scenario: str | None, device: str | None, engine: str | None, path: Path, as_json: bool
) -> None:
    """Fit, and write the engine profile to ``path`` with a picture of residuals beside it. Raises ValueError."""
    said = service_of(scenario, device, engine).base
    for key, option in (("model", "--scenario NAME"), ("hardware", "--scenario NAME or --device NAME")):
        if key not in said:
            raise ValueError(f"--serving: {key}: missing: add {option}, the service that was measured")
    given = fittable(files, said)
    with bar("running points", hidden=as_json) as tick:
        found = fit_service(given, said, tick)
    made, picture = profile(found, said, path.stem, files), path.with_suffix(".png")
    pictures(series(found), f"{said['model']} on {said['hardware']}: points held out", picture)
    save(made, path)
    notes = [*given.notes, *found.dropped]
    if as_json:
        show.as_json({"profile": str(path), "plot": str(picture), "terms": found.terms, "kept": found.kept,
                      "errors": [vars(e) for e in errors(found)], "notes": notes, "runs": found.runs})  # fmt: skip
        return
    _tables(found, notes)
    for line in (f"engine: {path}", f"plot: {picture}"):
        show.console().print(line, soft_wrap=True, markup=False, highlight=False)


def _tables(found: Fitted, notes: Sequence[str]) -> None:
    rows = [[name, f"{value:.4g}", f"{low:.4g} to {high:.4g}"] for name, (value, low, high) in found.terms.items()]
    rows += [[name, f"{value:.4g}", "class value, not told by these points"] for name, value in found.kept.items()]
    show.grid("terms", ["", "value", "interval"], rows)
    show.grid("errors", ["", "", "n", "median", "mean", "p90", "bias"], [
        [e.quantity, e.stage, e.n, *(f"{v:.1%}" for v in (e.median, e.mean, e.p90)), f"{e.bias:+.1%}"]
        for e in errors(found)
    ])  # fmt: skip
    for note in notes:
        show.console().print(note, soft_wrap=True, markup=False, highlight=False)
