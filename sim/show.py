"""What a terminal shows: tables, bars and sentences from plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sim.scenario import dump_json
from sim.uncertain.summary import flat

if TYPE_CHECKING:
    from pathlib import Path

    from analysis.compare import Comparison
    from analysis.round_picture import Round
    from sim.analytic.hardware import Device
    from sim.analytic.model import ModelShape
    from sim.ask import Explanation
    from sim.calibrate import Calibration
    from sim.finetune import Memory
    from sim.layouts import Cut
    from sim.overlay import Measured
    from sim.published.held import Held
    from sim.quantities import Beside
    from sim.reference.cli_view import Transcript
    from sim.run import Result
    from sim.scenario import Scenario
    from sim.silicon.rows import Judged
    from sim.silicon.sections import Section
    from sim.solve import Answer
    from sim.speedup import Curve
    from sim.tune import Tuned
    from sim.validation.beside import Pair
    from sim.validation.row import Row

EVERY = 256  # arrivals between two looks at the progress bar
SHOWN_INTERVALS = ("mean", "p99", "output_tokens_per_s", "attainment", "joules_per_output_token",
                   "usd_per_million_output_tokens")  # fmt: skip
MOST_SHOWN = 40  # rows of a speedup study on a screen


def console() -> Console:
    """Standard output, at least 100 columns wide where it is no terminal."""
    out = Console(highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(highlight=False, width=max(100, out.width))


@contextmanager
def progress(scenario: Scenario, hidden: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that counts arrivals; the callback is cheap enough for every request."""
    total = _expected(scenario.workload)
    bar = _bar(hidden)
    with bar:
        task = bar.add_task("simulating", total=total)

        def tick(arrived: int) -> None:
            if arrived % EVERY == 0:
                bar.update(task, completed=arrived)

        yield tick
        bar.update(task, completed=total if total is not None else 0)


@contextmanager
def repeats(total: int, hidden: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr that counts runs."""
    bar = _bar(hidden)
    with bar:
        task = bar.add_task("simulating", total=total)
        yield lambda: bar.advance(task)


def _bar(hidden: bool) -> Progress:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    err = Console(stderr=True)
    return Progress(*columns, console=err, transient=True, disable=hidden or not err.is_terminal)


def _expected(spec: Mapping[str, Any]) -> int | None:
    requests = spec.get("requests")
    if isinstance(requests, int):
        return requests
    if "trace" not in spec or "duration_s" in spec or "end_s" in spec:
        return None
    from workloads import shipped

    known = shipped().get(str(spec["trace"]))
    return getattr(known, "rows", None)


def as_json(value: Any) -> None:
    """Print a value as JSON; dataclasses become mappings."""
    typer.echo(dump_json(_jsonable(value)))


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _jsonable(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    value = value.item() if hasattr(value, "item") and not isinstance(value, str) else value
    return None if isinstance(value, float) and value != value else value  # JSON has no NaN


def yaml_text(value: Any) -> None:
    """Print a mapping as YAML."""
    import yaml

    typer.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())


def number(value: Any) -> str:
    """A number for people: three or four digits that matter."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}" if size >= 1e-3 else f"{value:.2e}"


def grid(title: str, head: list[str], rows: list[list[Any]]) -> None:
    """A table with the first column to the left and numbers to the right."""
    if title:
        console().print(title, style="bold")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=any(head))
    for i, column in enumerate(head):
        table.add_column(column, justify="left" if i == 0 or _words(row[i] for row in rows) else "right")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str) else number(cell) for cell in row))
    console().print(table)


def _words(cells: Iterable[Any]) -> bool:
    """Whether a column holds text that is no number in disguise."""
    return all(isinstance(cell, str) and cell[:1].isalpha() for cell in cells)


def facts(values: Mapping[str, Any], title: str) -> None:
    """Nested facts as two columns."""
    rows: list[list[Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += [[f"{key}.{inner}", v] for inner, v in value.items()]
        else:
            rows.append([key, value])
    grid(title, ["", ""], rows)


def result(result: Result, folder: str) -> None:
    """The table of a run, its sentence, its warnings, and where the rest lies."""
    from analysis.verdict import verdict

    metrics, out, scenario = result.metrics, console(), result.scenario
    policy = scenario.policy if isinstance(scenario.policy, str) else scenario.policy["name"]
    title = f"{scenario.model} on {_machines(result)}, {policy}"
    latency(metrics["latency"], title)
    out.print()
    grid("", ["", ""], [[label, value] for label, value in _outcome(metrics) if value is not None])
    if "uncertainty" in metrics:
        out.print()
        uncertainty(metrics)
    out.print()
    if metrics["phases"]:
        phases(metrics["phases"])
        out.print()
    out.print(verdict(result))
    for warning in metrics["warnings"]:
        out.print(f"warning: {warning}")
    out.print(f"results: {folder}", soft_wrap=True)


def uncertainty(metrics: Mapping[str, Any]) -> None:
    """The 80 % interval of what is shown of a run, the point beside it."""
    found, point = metrics["uncertainty"], flat(metrics)
    shown = [name for name in found["metrics"] if name.split(".")[-1] in SHOWN_INTERVALS]
    grid(f"80 % intervals, {found['samples']} samples of the hardware", ["", "point", "p10", "p50", "p90"], [
        [name, point[name], *found["metrics"][name].values()] for name in shown
    ])  # fmt: skip
    for note in found["notes"]:
        console().print(f"note: {note}")


def _machines(result: Result) -> str:
    scenario, pools = result.scenario, result.built.pools
    if len(pools) == 1:
        return f"{scenario.replicas} x {scenario.hardware}"
    return " + ".join(f"{count} x {one.device.name}" for one, count in pools)


def printed(rows: list[Beside]) -> None:
    """Numbers that somebody printed beside ours, with what ours is to them; nothing where there are none."""
    if rows:
        console().print()
        grid("beside what was printed", ["quantity", "printed", "ours", "error", "label", "source"], [
            [f"{r.quantity}: {r.over} over this" if r.over else r.quantity, r.published, r.ours, _signed(r.error),
             r.label, r.source]
            for r in rows
        ])  # fmt: skip


def printed_plain(rows: list[Beside]) -> list[dict[str, Any]]:
    """The same as plain values."""
    return [{**asdict(r), "error": r.error} for r in rows]


def latency(table: Mapping[str, Any], title: str) -> None:
    """TTFT, TPOT, ITL and E2EL in milliseconds: mean and percentiles."""
    columns = ["mean", "p50", "p90", "p99", "max"]
    names = {"ttft_ms": "TTFT (ms)", "tpot_ms": "TPOT (ms)", "itl_ms": "ITL (ms)", "e2el_ms": "E2EL (ms)"}
    grid(title, ["", *columns], [[label, *(table[key][c] for c in columns)] for key, label in names.items()])


def phases(found: Mapping[str, Any]) -> None:
    """What the rounds of each kind waited for, in percent of their time."""
    causes = sorted({c for p in found.values() for c, seconds in p["seconds_by_cause"].items() if seconds > 0})
    rows = [
        [name, p["seconds"], p["rounds"], f"{p['mfu']:.1%}", f"{p['mbu']:.1%}"]
        + [f"{p['seconds_by_cause'][c] / p['seconds']:.1%}" for c in causes]
        for name, p in found.items()
    ]
    grid("what bound each phase", ["phase", "busy (s)", "rounds", "MFU", "MBU", *causes], rows)


def _counts(count: Any) -> Any:
    """A number, or several by name."""
    return ", ".join(f"{n} {name}" for name, n in count.items()) if isinstance(count, dict) else count


def _outcome(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the run delivered and what it took; None where a value does not exist."""
    requests, throughput, goodput = metrics["requests"], metrics["throughput"], metrics["goodput"] or {}
    yield from ((n, _counts(count)) for n, count in requests.items() if n in ("arrived", "finished") or count)
    offline = metrics["cost"]["offline"]
    yield "makespan (s)" if offline else "duration (s)", metrics["duration_s"]
    yield "requests per second", throughput["requests_per_s"]
    yield "output tokens per second", throughput["output_tokens_per_s"]
    yield "goodput (requests/s within the SLO)", goodput.get("requests_per_s")
    yield "share of requests within the SLO", _percent(goodput.get("attainment"))
    yield "share of the time in which rounds ran", _percent(metrics["utilisation"]["busy"])
    yield "peak share of KV memory in use", _percent(metrics["kv"]["peak_share"])
    if metrics["prefix_cache"]:
        yield "prompt tokens found in the prefix cache", _percent(metrics["prefix_cache"]["hit_rate"])
    if metrics["acceptance"]["drafted_tokens"]:
        yield "tokens per decode round", metrics["acceptance"]["mean_accepted_length"]
        yield "draft tokens accepted", _percent(metrics["acceptance"]["draft_acceptance_rate"])
    yield "joules per output token", metrics["energy"]["joules_per_output_token"]
    yield "mean power (W)", metrics["energy"]["mean_W"]
    yield "kilojoules, floor and ceiling", _span(metrics["energy"], "floor_joules", "ceiling_joules")
    yield "carbon (g CO2)", metrics["energy"]["gCO2"]
    yield "dollars", metrics["cost"]["usd"]
    yield "dollars per hour", metrics["cost"]["usd_per_hour"]
    yield "dollars per million output tokens", metrics["cost"]["usd_per_million_output_tokens"]
    split = metrics["cost"]["split"]
    if split["usd_per_million_input_tokens"] is not None and split["usd_per_million_output_tokens"] is not None:
        shared = (number(split[f"usd_per_million_{kind}_tokens"]) for kind in ("input", "output"))
        yield "shared out: per million input and output tokens", " and ".join(shared)


def _span(section: Mapping[str, Any], low: str, high: str) -> str | None:
    """Two numbers of joules as kilojoules."""
    if section[low] is None or section[high] is None:
        return None
    return f"{number(section[low] / 1e3)} to {number(section[high] / 1e3)}"


def _percent(share: float | None) -> str | None:
    return None if share is None else "-" if math.isnan(share) or math.isinf(share) else f"{share:.1%}"


def decoding_round(one: Round) -> None:
    """The passes of a decoding round, what each moves, and what the round takes."""
    out = console()
    rows: list[list[Any]] = [["host", "", None, one.host_s * 1e3, "host", *[None] * 4]] if one.host_s else []
    for step in one.steps:
        moved = [step.moved[kind] / 1e6 for kind in ("weights", "kv", "activations", "on chip")]
        rows.append([step.label, step.lane.partition(": ")[2], step.tokens, step.seconds * 1e3, step.bound, *moved])
    head = ["pass", "model", "tokens", "ms", "bound", "weights MB", "KV MB", "act. MB", "on-chip MB"]
    grid(f"one {one.policy} round on {one.device}, batch {one.batch}, context {one.context}", head, rows)
    mask = one.attends.title.replace("\n", " ")
    out.print(f"{number(one.tokens)} tokens a sequence in {number(one.seconds * 1e3)} ms; {mask}", soft_wrap=True)


def explanation(answer: Explanation) -> None:
    """Memory, times, ops and limits of `explain`."""
    out = console()
    title = f"{answer.model} ({number(answer.parameters)} parameters) on {answer.device}"
    grid(title, ["memory of one device", "GB"], [[what, size / 1e9] for what, size in answer.budget.lines])
    out.print()
    grid("KV cache", ["", ""], [
        ["bytes a token", answer.kv_bytes_per_token],
        ["tokens that fit", answer.kv_tokens],
        [f"sequences of {answer.context} tokens that fit", answer.kv_sequences],
    ])  # fmt: skip
    out.print()
    grid("one pass", ["", ""], [
        [f"prefill of {answer.prompt} tokens (ms)", answer.prefill_s * 1e3],
        [f"decode, batch {answer.batch}, context {answer.context} (ms)", answer.decode_s * 1e3],
        ["output tokens per second", answer.tokens_per_s],
        ["ridge point (FLOP per byte)", answer.ridge_point],
    ])  # fmt: skip
    out.print()
    rows = [
        [o.op, o.phase, o.flops / 1e9, o.hbm_bytes / 1e6, o.intensity, o.seconds * 1e6, o.bound]
        for o in answer.ops
        if o.flops or o.hbm_bytes
    ]
    grid("ops", ["op", "phase", "GFLOP", "HBM MB", "FLOP/byte", "us", "bound"], rows)
    out.print()
    for limit in answer.limits:
        when = f"at batch {number(limit.batch)}" if limit.batch is not None else "not with batch"
        out.print(f"saturates: {limit.what} {when}")
    for note in answer.notes:
        out.print(f"note: {note}")


def layouts(rows: list[Cut], title: str) -> None:
    """Layouts that are legal, the fastest decoding first, then why the others are not."""
    out = console()
    good = [row for row in rows if not row.why]
    grid(title, ["layout", "weights (GB)", "KV tokens", "prefill (ms)", "decode (ms)", "tokens/s"], [
        [row.layout, row.weights_GB, row.kv_tokens, row.prefill_ms, row.decode_ms, row.tokens_per_s] for row in good
    ])  # fmt: skip
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.why:
            reasons.setdefault(row.why, []).append(row.layout)
    for why, which in reasons.items():
        more = f" and {len(which) - 1} more" if len(which) > 1 else ""
        out.print(f"not {which[0]}{more}: {why}", soft_wrap=True)


def finetuning(rows: list[Memory], shape: ModelShape, device: Device, tokens: int) -> None:
    """Memory of every way to fine-tune a model, and whether one device holds it."""
    title = f"fine-tuning {shape.name} ({number(shape.total_parameters)} parameters), {tokens} tokens a step, GB"
    head = ["", "trainable", "weights", "float32 copies", "gradients", "Adam", "activations", "total", device.name]
    grid(title, head, [
        [r.way, r.trainable, *(size / 1e9 for size in (r.weights_bytes, r.master_bytes, r.gradients_bytes,
         r.moments_bytes, r.activations_bytes, r.total_bytes)),
         "fits" if r.total_bytes <= device.memory_bytes else "no"]
        for r in rows
    ])  # fmt: skip


def devices(profiles: list[dict[str, Any]]) -> None:
    """The list of hardware profiles."""
    rows = []
    for p in profiles:
        peaks = p["peak_TFLOPs"]
        best = peaks.get("bf16") or peaks.get("fp16") or peaks.get("fp32")
        memory = p["memory"]
        rows.append([
            p["name"], p["year"], memory["capacity_GB"], memory["bandwidth_GBps"], best, p["power"]["tdp_W"],
            p["price"]["usd_per_hour"],
        ])  # fmt: skip
    grid("hardware profiles", ["name", "year", "GB", "GB/s", "TFLOP/s (16 bit)", "W", "$/h"], [
        [r[0], str(r[1]), *r[2:]] for r in rows
    ])  # fmt: skip


def models(shapes: list[ModelShape]) -> None:
    """The list of shipped models."""
    grid("models", ["name", "parameters", "layers", "width", "context"], [
        [s.name, s.total_parameters, len(s.layers) or len(s.encoder), s.d_model, s.max_context] for s in shapes
    ])  # fmt: skip


def scenarios(named: Mapping[str, str]) -> None:
    """The list of shipped scenarios."""
    grid("scenarios", ["name", "what"], [[name, about] for name, about in named.items()])


def traces(shipped: Mapping[str, Any]) -> None:
    """The list of shipped traces."""
    grid("traces", ["name", "licence", "source"], [[n, t.licence, t.source] for n, t in shipped.items()])


def plugins(rows: list[dict[str, Any]]) -> None:
    """Policies or variants with their options."""
    for row in rows:
        options = ", ".join(f"{k}={v!r}" for k, v in row["options"].items()) or "no options"
        console().print(f"[bold]{row['name']}[/bold] ({options})", markup=True)
        console().print(f"  {row['about']}\n")


def names(meanings: dict[str, str]) -> None:
    """Names of the field that stand for a policy and variants."""
    console().print("[bold]policy also takes[/bold]", markup=True)
    for name, meaning in meanings.items():
        console().print(f"  {name}: {meaning}")


def comparison(comparison: Comparison) -> None:
    """Differences with intervals, and the waterfall."""
    c = comparison
    grid(f"{c.labels[0]}  ->  {c.labels[1]}", ["", "A", "B", "B - A", f"{100 * c.confidence:g} % interval"], [
        [d.metric, d.a, d.b, d.difference, "" if d.low is None else f"[{number(d.low)}, {number(d.high)}]"]
        for d in c.differences
    ])  # fmt: skip
    console().print()
    grid("mean E2EL (ms), and what the difference is made of", ["", "A", "B", "B - A"], [
        [w.cause, w.a_ms, w.b_ms, w.difference_ms] for w in c.waterfall
    ])  # fmt: skip
    console().print()
    console().print(c.sentence)
    console().print(f"{c.requests} paired requests; intervals from {c.method}")
    for note in c.notes:
        console().print(f"note: {note}")
    if c.uncertainty is not None:
        differences(c.uncertainty)


def differences(found: Mapping[str, Any]) -> None:
    """The 80 % interval of each difference over samples of the hardware."""
    title = f"80 % intervals of B - A, {found['samples']} samples of the hardware, the same in both"
    grid(title, ["", "p10", "p50", "p90"], [[name, *one.values()] for name, one in found["metrics"].items()])
    for note in found["notes"]:
        console().print(f"note: {note}")


def speedups_plain(
    found: Curve, answers: list[Answer], points: list[Measured], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """A speedup study as `--json` shows it."""
    said = {"notes": list(notes)} if notes else {}
    return {"best": found.row(found.best), "points": list(found.rows()), "solve": answers, "measured": points, **said}


def speedups(
    found: Curve, answers: list[Answer], target: float | None, points: list[Measured], notes: Sequence[str] = ()
) -> None:
    """The best points of a speedup study, what was solved for, measurements beside ours, and notes."""
    fixed = {axis.path: number(axis.values[0]) for axis in found.axes if len(axis.values) == 1}
    names = [axis.path for axis in found.axes if len(axis.values) > 1] or [found.axes[0].path]
    rows = sorted((row for row in found.rows() if row["best"]), key=lambda row: (row["batch"], row["context"]))
    at = ", ".join(f"{name} {value}" for name, value in fixed.items() if name not in names)
    if not rows:
        console().print("no choice is as good as the scenario's quality asks for; --max-quality-loss opens it")
    what = "choice at each batch and context" if len(rows) > 1 else "point"
    title = f"speedup over autoregressive decoding{', ' if at else ''}{at}: the best {what}"
    head = ["tokens a round", "round (ms)", "step (ms)", "tokens/s", "speedup", "fits"]
    columns = ["expected_tokens", "round_ms", "step_ms", "tokens_per_s", "speedup"]
    if "speedup_p10" in found.table:
        head[-1:], columns = ["p10", "p90", "fits"], [*columns, "speedup_p10", "speedup_p90"]
    grid(title, [*(name.removeprefix("policy.") for name in names), *head], [
        [number(row[names[0]]), *(row[n] for n in (*names[1:], *columns)), "yes" if row["fits"] else "no"]
        for row in rows[:MOST_SHOWN]
    ])  # fmt: skip
    if len(rows) > MOST_SHOWN:
        console().print(f"... and {len(rows) - MOST_SHOWN} more")
    for answer in answers:
        console().print(solved(answer, target or 0.0), soft_wrap=True)
    if points:
        console().print()
        grid("measured", ["at", "measured", "ours", "error"], [
            [", ".join(f"{k} {v}" for k, v in p.at), p.speedup, p.ours, _signed(p.error)] for p in points
        ])  # fmt: skip
    for note in notes:
        console().print(f"note: {note}", soft_wrap=True)


def tuned(found: Tuned) -> None:
    """The candidates of `tune` from best to worst, and one sentence."""
    load, ms = found.load, ["batch", "TPOT (ms)", "capacity (1/s)", "GB", "loss (%)"]
    asked = f"{load.users:.4g} users" if load.rate_per_s is None else f"{load.rate_per_s:.4g} requests/s"
    title = f"{asked} a replica, {load.prompt:.4g} tokens in, {load.output:.4g} out, context {load.context}"
    grid(title, ["choice", *ms, "refused for"], [
        [c.choice, c.batch, c.tpot_ms, c.capacity_per_s, c.memory_GB, c.loss_percent, c.why]
        for c in found.candidates[:MOST_SHOWN]
    ])  # fmt: skip
    if len(found.candidates) > MOST_SHOWN:
        console().print(f"... and {len(found.candidates) - MOST_SHOWN} more")
    for one in found.checked:
        kept = "" if math.isnan(one.kept) else f", {one.kept:.1%} of requests within the promise"
        said = f"run: {one.choice}: mean TPOT {one.tpot_ms:.4g} ms, mean TTFT {one.ttft_ms:.4g} ms{kept}"
        console().print(said, soft_wrap=True)
    console().print(_recommended(found), soft_wrap=True)


def _recommended(found: Tuned) -> str:
    if found.best is None:
        return f"no choice can be recommended: {found.candidates[0].choice}: {found.candidates[0].why}"
    parts = [f"best by {found.objective}: {found.best.choice}"]
    parts += [] if math.isnan(found.margin) else [f"{found.margin:+.1%} over the next choice"]
    parts += [] if math.isnan(found.over_written) else [f"{found.over_written:+.1%} over the scenario as written"]
    return "; ".join(parts)


def solved(answer: Answer, target: float) -> str:
    """One sentence for one axis."""
    at = " at " + ", ".join(f"{name} {number(value)}" for name, value in answer.at) if answer.at else ""
    if not answer.values:
        span = f"from {number(answer.lowest)} to {number(answer.highest)}"
        return f"speedup {target:g}{at}: no {answer.path} gives it; the speedup runs {span}"
    places = ", ".join(f"{v if isinstance(v, str) else number(v)} ({s:.4g} x)"
                       for v, s in zip(answer.values, answer.speedups, strict=True))  # fmt: skip
    return f"speedup {target:g}{at}: {answer.path} = {places}"


def validation(rows: list[Row]) -> None:
    """The table of `validate`, and one sentence."""
    grid("simulator against witness", ["quantity", "simulated", "measured", "error", "threshold", "verdict"], [
        [r.quantity, r.simulated, r.measured, _signed(r.error), f"{r.threshold:.2%}", "ok" if r.passed else "FAILED"]
        for r in rows
    ])  # fmt: skip
    failed = sum(not r.passed for r in rows)
    console().print(f"{failed} of {len(rows)} failed" if failed else f"all {len(rows)} hold")


def silicon(sections: list[Section]) -> None:
    """The tables of `validate --silicon`, its verdicts, and what was left out by name."""
    for section in sections:
        if section.covered:
            coverage(section)
            continue
        judged(section.title, section.rows, section.left_out)
        grid("over the tables", ["quantity", "tables", "median", "p90", "datasheet", "target", "limit", ""], [
            [v.quantity, v.tables, _percent(v.median), _percent(v.p90), _percent(v.textbook),
             f"{_percent(v.median_target)} / {_percent(v.p90_target)}", f"{_percent(v.median_limit)} / "
             f"{_percent(v.p90_limit)}", ("ok" if v.met else "ok, target missed") if v.passed else "FAILED"]
            for v in section.verdicts
        ])  # fmt: skip


def coverage(section: Section) -> None:
    """How many measurements lie within their intervals."""
    grid(section.title, ["", "device", "n", "inside", "allowed", ""], [
        [c.what, c.device, c.n, _percent(c.share), c.allowed,
         "" if c.limits is None else "ok" if c.passed else "FAILED"]
        for c in section.covered
    ])  # fmt: skip


def section_plain(section: Section) -> dict[str, Any]:
    """A section as `--json` shows it."""
    verdicts = [{**vars(v), "met": v.met, "passed": v.passed} for v in section.verdicts]
    return {"title": section.title, "passed": section.passed, "left_out": section.left_out, "verdicts": verdicts,
            "tables": [vars(row) for row in section.rows],
            "coverage": [{**vars(c), "passed": c.passed} for c in section.covered]}  # fmt: skip


def judged(title: str, rows: list[Judged], notes: Iterable[str]) -> None:
    """An error table: one line for each device, library and format, the datasheet's error beside ours."""
    grid(title, ["", "device", "library", "what", "n", "median", "p90", "bias", "datasheet"], [
        [r.section, r.device, r.library, r.what, r.n, _percent(r.median), _percent(r.p90), _signed(r.bias),
         _percent(r.textbook)]
        for r in rows
    ])  # fmt: skip
    for note in notes:
        console().print(note, soft_wrap=True)


def published(rows: list[Held], deck: str | None = None) -> None:
    """The table of `validate --published`, by slide where one deck is asked for, and one sentence."""
    groups: dict[str, list[Held]] = {}
    for h in rows:
        groups.setdefault("published numbers beside ours" if deck is None else h.row.slide_in(deck), []).append(h)
    for title, group in groups.items():
        grid(title, ["row", "", "published", "ours", "error", "label", ""], [
            [h.row.id, h.row.what, h.row.published, "-" if h.ours is None else number(h.ours),
             "-" if h.error is None else _signed(h.error), h.row.label, h.verdict]
            for h in group
        ])  # fmt: skip
    failed, claims = sum(not h.passed for h in rows), sum(h.row.label != "data" for h in rows)
    said = [f"{failed} of {claims} failed" if failed else f"all {claims} are as labelled"] if claims else []
    console().print("; ".join([*said, f"{len(rows) - claims} rows of data"]))


def published_plain(held: Held) -> dict[str, Any]:
    """A published row with ours as plain values."""
    from sim.published.table import load

    said = {key: value for key, value in asdict(held.row).items() if value}
    return {**said, "citation": load().citations[held.row.source], "value": held.row.value, "ours": held.ours,
            "model_of_ours": held.row.ours or None, "error": held.error, "verdict": held.verdict,
            "passed": held.passed}  # fmt: skip


def _signed(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:+.2%}" if share else "0"


def witnesses(rows: list[dict[str, Any]]) -> None:
    """The list of models that can be run for real."""
    grid("models that run for real", ["name", "installed", "what"], [
        [r["name"], "yes" if r["installed"] else "no", r["about"]] for r in rows
    ])  # fmt: skip


def decoding(transcript: Transcript, pairs: list[Pair]) -> None:
    """The classic figure of one run, and what the simulator says of it."""
    from sim.reference.cli_view import render

    out = console()
    out.print(render(transcript, colour=out.color_system is not None), soft_wrap=True)
    out.print()
    grid("", ["", "simulated", "measured", ""], [[p.quantity, p.simulated, p.measured, p.note] for p in pairs])


def calibration(found: Calibration, files: tuple[Path, ...]) -> None:
    """What was measured of this machine, with its range, by threads, and where it lies."""
    scales = {
        "memory_Bps": (1e9, "memory (GB/s)"), "onchip_Bps": (1e9, "cache (GB/s)"), "onchip_bytes": (1e6, "cache (MB)"),
        "peak_flops": (1e9, "products (GFLOP/s)"), "pack_s": (1e-9, "packing (ns a number)"),
        "step_s": (1e-6, "host, a pass (us)"), "layer_s": (1e-6, "host, a layer (us)"),
        "sequence_s": (1e-6, "host, a sequence (us)"),
    }  # fmt: skip
    rows: list[list[Any]] = []
    for key, value in asdict(found.machine).items():
        by, name = scales.get(key, (1.0, f"{key}, share of peak"))
        rows.append([name, *(v / by for v in (value, *found.ranges[key]))])
    grid("this machine, as NumPy uses it", ["", "value", "low", "high"], rows)
    console().print()
    tables = found.by_threads
    grid("GB/s of a stream, GFLOP/s of a product (rows x k x n)", ["", *(f"{n} threads" for n in tables)], [
        [size, *(table[size] for table in tables.values())] for size in next(iter(tables.values()))
    ])  # fmt: skip
    console().print(f"hardware: {files[0]}\nengine: {files[1]}")
