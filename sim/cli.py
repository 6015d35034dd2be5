"""The command line. Every command imports what it needs when it runs, so that help stays quick."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sim.ask import Explanation
    from sim.build import Built
    from sim.scenario import Scenario
    from sim.speedup import Curve, Ratio

app = typer.Typer(
    help="How fast, how dear and how hot an LLM service will be under real traffic, and why.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
trace_app = typer.Typer(help="Look at traces.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")
reference_app = typer.Typer(help="Run small models for real: the witness.", no_args_is_help=True)
app.add_typer(reference_app, name="reference")

File = Annotated[str, typer.Argument(help="A scenario: a YAML file, or the name of a shipped one.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. --set policy.gamma=3.")
]
MaxQualityLoss = Annotated[
    str | None,
    typer.Option(metavar="PERCENT", help="What a recommended choice may lose: a number, or any.", show_default=False),
]
Executor = Annotated[
    str, typer.Option(metavar="PLACE", help="processes[:N], threads[:N], serial, dask://HOST:PORT, ray[://HOST:PORT].")
]
Restart = Annotated[bool, typer.Option("--restart", help="Throw away what an interrupted one left.")]
Uncertainty = Annotated[
    int | None,
    typer.Option(metavar="N", help="80 % intervals over N samples of the hardware.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _print_version(asked: bool) -> None:
    if asked:
        from sim._version import __version__

        typer.echo(f"decodesim {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """How fast, how dear and how hot an LLM service will be under real traffic, and why."""


@app.command()
def run(
    file: File,
    set_: Settings = None,
    out: Annotated[str | None, typer.Option(help="Result folder; runs/NAME by default.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier result in the folder.")] = False,
    detailed: Annotated[bool, typer.Option(help="Per-request lists in bench.json, as --save-detailed writes.")] = False,
    uncertainty: Uncertainty = None,
    stream: Annotated[bool, typer.Option("--stream", help="Tables to disk as they come: memory stays flat.")] = False,
    executor: Annotated[
        str | None,
        typer.Option(help="Divide replicas among workers: processes:2, dask://HOST:PORT, ray.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Simulate a scenario: a table, one sentence, and a result folder."""
    from analysis.store import check_target
    from sim import quantities, show
    from sim.build import build_scenario
    from sim.commands.uncertain import checked, of_result
    from sim.run import simulate
    from sim.scenario import Scenario, dump_json

    samples = checked(uncertainty)
    scenario = Scenario.load(file, set_ or ())
    built = _named(file, lambda: build_scenario(scenario))
    _named(file, lambda: quantities.check(scenario))
    folder = _folder(file, out)
    check_target(Path(folder), overwrite=overwrite)
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    if stream:
        from sim.commands import streamed

        streamed.check({
            "--detailed": detailed, "--uncertainty": samples, f"{file}: published": scenario.published,
            "--executor": executor,
        })  # fmt: skip
        with show.progress(scenario, hidden=quiet or as_json) as tick:
            result, told = _named(file, lambda: streamed.run(built, folder, overwrite, now, tick))
        typer.echo(dump_json(told.metrics)) if as_json else show.result(told, folder)
        _ended(result)
        return
    if executor is not None:
        from sim.commands.divided import run as divided

        result = _named(file, lambda: divided(built, executor))
    else:
        with show.progress(scenario, hidden=quiet or as_json) as tick:
            result = _named(file, lambda: simulate(built, progress=tick))
    of_result(result, samples, hidden=quiet or as_json)
    saved = result.save(folder, overwrite=overwrite, detailed=detailed, date=now)
    beside = quantities.published(result)
    if as_json:
        typer.echo(dump_json(result.metrics | ({"published": show.printed_plain(beside)} if beside else {})))
    else:
        show.result(result, saved)
        show.printed(beside)
    _ended(result)


def _ended(result: Any) -> None:
    """Exit with what a run that did not come to its end has to say."""
    if not result.complete:
        for note in result.notes:
            typer.echo(f"decodesim: {note}", err=True)
        raise typer.Exit(130 if any("interrupted" in note for note in result.notes) else 1)


@app.command()
def explain(
    file: File,
    set_: Settings = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences that decode together.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that is prefilled.")] = 1024,
    context: Annotated[int, typer.Option(min=1, help="Tokens that a decoding sequence attends to.")] = 1024,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Instead: memory to fine-tune it, steps of batch * context tokens.")
    ] = False,
    round_: Annotated[bool, typer.Option("--round", help="Instead: one decoding round, pass by pass.")] = False,
    layouts: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Instead: every layout over so many devices.", show_default=False),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="With --round: picture to write, .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """No simulation: memory, KV capacity, intensity and bound of every op, and what saturates first."""
    from sim import show

    if out is not None and not round_:
        raise ValueError("--out: is the picture of a round; add --round")
    if round_ and finetune:
        raise ValueError("--round: one question at a time; leave out --finetune")
    if layouts is not None and (round_ or finetune):
        raise ValueError("--layouts: one question at a time; leave out --round and --finetune")
    if layouts is not None:
        _layouts(file, set_, layouts, (batch, prompt, context), as_json)
        return
    if round_:
        _round(file, set_, batch, context, out, as_json)
        return
    if finetune:
        _finetuned(file, set_, batch * context, as_json)
        return
    answer, _ = _explained(file, set_, batch, prompt, context)
    show.as_json(answer) if as_json else show.explanation(answer)


@app.command()
def lifetime(
    file: File,
    set_: Settings = None,
    tokens: Annotated[
        float | None, typer.Option(help="Tokens that the model was trained on: 6 FLOPs a parameter and token.",
                                   show_default=False)
    ] = None,
    flops: Annotated[float | None, typer.Option(help="Instead: FLOPs of training.", show_default=False)] = None,
    mfu: Annotated[float, typer.Option(help="Share of the device's 16-bit peak that training reached.")] = 0.4,
    hardware: Annotated[
        str | None, typer.Option(help="What it was trained on; the scenario's by default.", show_default=False)
    ] = None,
    watts: Annotated[
        float | None, typer.Option(help="Of a training device; its TDP by default.", show_default=False)
    ] = None,
    requests_per_day: Annotated[
        float | None, typer.Option(help="As fast as the simulated run finished them by default.", show_default=False)
    ] = None,
    out: Annotated[str | None, typer.Option(help="Picture to write, .png, .svg or .pdf.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Training once beside inference a day: energy, dollars, carbon, and when inference is most of it."""
    from sim.commands.lifetime import Asked, run

    asked = Asked(tokens, flops, mfu, hardware, watts, requests_per_day)
    _named(file, lambda: run(file, set_ or (), asked, out, as_json))


@app.command()
def roofline(
    file: File,
    plot: Annotated[str, typer.Option(help="Picture to write: .png, .svg or .pdf.", show_default=False)],
    set_: Settings = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences that decode together.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that is prefilled.")] = 1024,
    context: Annotated[int, typer.Option(min=1, help="Tokens that a decoding sequence attends to.")] = 1024,
) -> None:
    """Draw the device's roofline with a dot for every op in prefill and decode."""
    from analysis.plots import roofline as draw
    from analysis.plots import save_figure
    from sim.uncertain.ranges import BEYOND

    answer, parts = _explained(file, set_, batch, prompt, context)
    save_figure(draw(answer.points, parts.device, title=f"{answer.model} on {answer.device}, batch {batch}"), plot)
    for note in answer.notes:
        if note.startswith(BEYOND):
            typer.echo(f"note: {note}")
    typer.echo(f"wrote {plot}")


@app.command()
def profiles(
    name: Annotated[str | None, typer.Argument(help="A device, for all of its profile.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the hardware profiles, or print one with its sources."""
    import hardware_profiles
    from sim import show

    if name is not None:
        profile = hardware_profiles.load(name)
        show.as_json(profile) if as_json else show.yaml_text(profile)
        return
    devices = [hardware_profiles.load(n) for n in hardware_profiles.names()]
    show.as_json(devices) if as_json else show.devices(devices)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that come along, with their parameter counts."""
    from sim import show
    from sim.build import load_shape
    from workloads import models as shipped

    shapes = [load_shape(name, "model") for name in shipped.names()]
    plain = [{"name": s.name, "parameters": s.total_parameters} for s in shapes]
    show.as_json(plain) if as_json else show.models(shapes)


@app.command("app")
def app_(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0 takes any that is free.")] = 8050,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only say where the page is.")] = False,
) -> None:
    """A page with sliders on this machine alone: answers of the analytic core at once, runs with traffic beside."""
    from sim.commands.app import play

    play(port, not no_browser)


@app.command()
def scenarios() -> None:
    """List the scenarios that come along."""
    from sim import show
    from sim.scenario import shipped_scenarios

    show.scenarios({name: file.read_text().splitlines()[0].lstrip("# ") for name, file in shipped_scenarios().items()})


@app.command()
def policies(as_json: AsJson = False) -> None:
    """List the ways of decoding with their options and sources."""
    _list_plugins("sim.policies", as_json)


@app.command()
def variants(as_json: AsJson = False) -> None:
    """List what can rewrite a forward pass, with options and sources."""
    _list_plugins("sim.variants", as_json)


@app.command()
def routers(as_json: AsJson = False) -> None:
    """List what can choose the replica of a request, with options."""
    _list_plugins("sim.routers", as_json)


@app.command()
def schedulers(as_json: AsJson = False) -> None:
    """List what can plan a replica's rounds, with options."""
    _list_plugins("sim.schedulers", as_json)


@trace_app.command("info")
def trace_info(
    file: Annotated[str, typer.Argument(help="A trace: a file, or the name of a shipped one.", show_default=False)],
    format: Annotated[str | None, typer.Option(help="Reader to use instead of sniffing.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Rows, rate, burstiness, lengths and prefix reuse of a trace."""
    from sim import show
    from workloads import describe, open_trace

    facts = describe(open_trace(file, format=format))
    show.as_json(facts) if as_json else show.facts(facts, title=str(facts["name"]))


@trace_app.command("list")
def trace_list() -> None:
    """List the traces that come along."""
    from sim import show
    from workloads import shipped

    show.traces(shipped())


@app.command()
def schema() -> None:
    """Print the JSON Schema of a scenario, for editors."""
    from sim.scenario import dump_json
    from sim.scenario import schema as scenario_schema

    typer.echo(dump_json(scenario_schema()))


@app.command()
def compare(
    a: File,
    b: Annotated[str | None, typer.Argument(help="The other scenario; left out: A with --set.")] = None,
    set_: Settings = None,
    both: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Change a key in both scenarios.")] = None,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Seeds to pair; 1: moving blocks of one run.")] = 1,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    uncertainty: Uncertainty = None,
    out: Annotated[str | None, typer.Option(help="Folder for compare.json and waterfall.png.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier comparison in the folder.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Two scenarios under the same luck: differences with confidence intervals, and what they are made of."""
    from analysis.compare import compare as pair
    from analysis.comparison_files import as_table, check_place, save_comparison
    from sim import show
    from sim.commands.uncertain import checked, of_pair
    from sim.run import pairs
    from sim.scenario import Scenario

    samples = checked(uncertainty)

    if b is None and not set_:
        raise ValueError("compare: give a second scenario, or --set KEY=VALUE for what should differ")
    first = Scenario.load(a, both or ())
    second = Scenario.load(b or a, [*(both or ()), *(set_ or ())])
    labels = (a, " ".join([b or a, *(set_ or ())]))
    if out is not None:
        check_place(out, overwrite)
    with show.repeats(2 * repeats, hidden=quiet or as_json) as tick:
        comparison = _named(labels[1], lambda: pair(pairs(first, second, repeats, tick), labels, confidence))
    comparison = of_pair(comparison, first, second, samples, hidden=quiet or as_json)
    if out is not None:
        save_comparison(comparison, out, overwrite=overwrite)
    show.as_json(as_table(comparison)) if as_json else show.comparison(comparison)


@app.command()
def speedup(
    file: File,
    set_: Settings = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUES", help="An axis: policy.gamma=1:16, batch=1,4,16, context=512,4096."),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder for speedup.csv and pictures.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier study in the folder.")] = False,
    solve: Annotated[
        str | None, typer.Option(metavar="speedup=X", help="Which value of an axis gives that speedup.")
    ] = None,
    for_: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="KEY=LOW:HIGH", help="The axis to solve for, or KEY=a,b,c."),
    ] = None,
    overlay: Annotated[
        str | None, typer.Option(metavar="CSV", help="Measured speedups to put beside ours.", show_default=False)
    ] = None,
    cost_ratio: Annotated[
        float | None,
        typer.Option(help="Leviathan's c: a draft pass in autoregressive steps, instead of the device's seconds."),
    ] = None,
    verify_ratio: Annotated[float, typer.Option(help="Likewise of verification, where --cost-ratio is given.")] = 1.0,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Change the baseline: variants=[], policy=autoregressive."),
    ] = None,
    max_quality_loss: MaxQualityLoss = None,
    uncertainty: Uncertainty = None,
    as_json: AsJson = False,
) -> None:
    """No simulation: speedup of the policy over autoregressive decoding, by any key, batch and context."""
    from analysis.speedup_files import check_place
    from sim import show
    from sim.axes import parse_axes
    from sim.commands.uncertain import checked, study
    from sim.overlay import beside, read_measured
    from sim.scenario import Scenario
    from sim.solve import target_of
    from sim.speedup import Ratio

    samples = checked(uncertainty)
    scenario, axes = Scenario.load(file, [*(set_ or ()), *_quality(max_quality_loss)]), parse_axes(over or ())
    if out is not None:
        check_place(out, overwrite)
    if for_ and solve is None:
        raise ValueError("--for: says which axis --solve looks along; give --solve speedup=X too")
    target = None if solve is None else target_of(solve)
    ratio = None if cost_ratio is None else Ratio(cost_ratio, verify_ratio)
    found, notes = _named(file, lambda: study(scenario, axes, ratio, against or (), samples))
    answers = [] if target is None else _named(file, lambda: _solved(scenario, target, for_, found, ratio, against))
    points = [] if overlay is None else beside(scenario, read_measured(overlay), found.axes, ratio, against or ())
    files = [] if out is None else _save_speedup(scenario, found, out, points, target, overwrite)
    if as_json:
        show.as_json(show.speedups_plain(found, answers, points, notes))
        return
    show.speedups(found, answers, target, points, notes)
    if files:
        typer.echo(f"wrote {', '.join(files)} into {out}")


def _save_speedup(
    scenario: Scenario, found: Curve, out: str, points: list[Any], target: float | None, overwrite: bool
) -> list[str]:
    from analysis.origin import header
    from analysis.speedup_files import save_speedup

    title = f"{scenario.model} on {scenario.hardware}"
    numbers = {axis.path: axis.values for axis in found.axes if axis.numeric}
    resolved = header(scenario.seed) + scenario.to_yaml()
    return save_speedup(found.table, numbers, out, measured=points, target=target, title=title, scenario_yaml=resolved,
                        overwrite=overwrite)  # fmt: skip


def _quality(max_quality_loss: str | None) -> list[str]:
    """The setting that ``--max-quality-loss`` stands for."""
    return [] if max_quality_loss is None else [f"quality={max_quality_loss}"]


def _solved(
    scenario: Scenario, target: float, for_: list[str] | None, found: Curve, ratio: Ratio | None,
    against: list[str] | None,
) -> list[Any]:  # fmt: skip
    """An answer for each axis asked about, the others at the best point of the curve."""
    from sim.axes import Axis
    from sim.solve import solve, suggested

    best = found.row(found.best)
    fixed = [Axis(axis.path, (best[axis.path],)) for axis in found.axes]
    return [solve(scenario, target, one, fixed, ratio, against or ()) for one in for_ or suggested(scenario)]


@app.command()
def tune(
    file: File,
    set_: Settings = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUES", help="What to try instead of what the scenario offers: policy.gamma=1:8."),
    ] = None,
    objective: Annotated[str, typer.Option(help="tpot: least time per token at this load; capacity: most load.")] = (
        "tpot"
    ),
    max_quality_loss: MaxQualityLoss = None,
    memory_GB: Annotated[
        float | None, typer.Option("--memory-GB", help="Most memory of weights and KV.", show_default=False)
    ] = None,
    min_capacity: Annotated[
        float | None, typer.Option(help="Least requests per second and replica.", show_default=False)
    ] = None,
    mixes: Annotated[int, typer.Option(help="Mix'n'Match models to try, of a MatFormer.")] = 0,
    check: Annotated[int, typer.Option(help="Run so many of the first.")] = 0,
    out: Annotated[str | None, typer.Option(help="Folder for tune.csv and tune.png.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier study in the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Best gamma, tree, bit width, granularity for this device, load and context, and by how much it wins."""
    from analysis.origin import header
    from analysis.tune_files import check_place, save_tune
    from sim import show
    from sim.axes import parse_axes
    from sim.scenario import Scenario
    from sim.tune import Limits
    from sim.tune import tune as ask

    scenario, axes = Scenario.load(file, [*(set_ or ()), *_quality(max_quality_loss)]), parse_axes(over or ())
    if out is not None:
        check_place(out, overwrite)
    limits = Limits(memory_GB, min_capacity)
    found = _named(file, lambda: ask(scenario, axes, objective=objective, limits=limits, mixes=mixes, check=check))
    resolved = header(scenario.seed) + scenario.to_yaml()
    files = [] if out is None else save_tune(found.candidates, out, scenario_yaml=resolved, overwrite=overwrite)
    show.as_json({**vars(found), "best": found.best}) if as_json else show.tuned(found)
    if files and not as_json:
        typer.echo(f"wrote {', '.join(files)} into {out}")


@app.command()
def sweep(
    file: File,
    over: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUES", help="What to vary: policy.gamma=1:8, hardware=l4,l40s, KEY=LOW..HIGH."),
    ],
    out: Annotated[str, typer.Option(help="Folder for sweep.parquet, sweep.csv and sweep.json.", show_default=False)],
    set_: Settings = None,
    grid: Annotated[bool, typer.Option("--grid", help="Every combination of the values (what else is said: not).")] = (
        False
    ),
    list_: Annotated[bool, typer.Option("--list", help="Values in step: the first of each, the second of each.")] = (
        False
    ),
    random: Annotated[int | None, typer.Option(metavar="N", help="N points at random.", show_default=False)] = None,
    latin: Annotated[int | None, typer.Option(metavar="N", help="A Latin hypercube of N.", show_default=False)] = None,
    executor: Executor = "processes",
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn points; the scenario has its own.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier sweep in the folder.")] = False,
    restart: Restart = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Simulate a scenario at many points: a table with one row a run; an interrupted sweep goes on where it was."""
    from sim.commands.sweep import design_of, run

    options: dict[str, Any] = {"overwrite": overwrite, "restart": restart, "as_json": as_json, "quiet": quiet}
    design = design_of(list_, random, latin, grid)
    _named(file, lambda: run(file, set_ or (), over, out, design, executor=executor, seed=seed, **options))


@app.command()
def plan(
    file: File,
    out: Annotated[str, typer.Option(help="Folder for plan.json, ranked.csv and pictures.", show_default=False)],
    set_: Settings = None,
    executor: Executor = "processes",
    uncertainty: Annotated[
        int | None, typer.Option(metavar="N", help="Run the best on N samples of the hardware.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier plan in the folder.")] = False,
    restart: Restart = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """The cheapest fleet that keeps every promise under this traffic, what the others failed on, what would change."""
    from sim.commands.plan import run

    options: dict[str, Any] = {"overwrite": overwrite, "restart": restart, "as_json": as_json, "quiet": quiet}
    _named(file, lambda: run(file, set_ or (), out, executor=executor, uncertainty=uncertainty or 0, **options))


@app.command()
def init(
    out: Annotated[str, typer.Option(metavar="SCENARIO.yaml", help="The scenario to write.", show_default=False)],
    log: Annotated[
        str | None, typer.Option(metavar="FILE", help="A gateway's log, CSV or JSON lines.", show_default=False)
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option(metavar="FILE", help="A saved scrape of vLLM's /metrics.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="What is served; a scrape may say it.", show_default=False)] = None,
    hardware: Annotated[str | None, typer.Option(help="A device's profile.", show_default=False)] = None,
    engine: Annotated[
        str | None, typer.Option(help="ideal for a log, vllm-v1 for a scrape, unless said.", show_default=False)
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="WHAT=NAME", help="A column of the log: prompt=n_in, time=at, ...")
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(metavar="UNIT", help="Of the log's times: date, s, ms, us, ns.", show_default=False)
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="FILE", help="An earlier scrape, to be taken off.", show_default=False)
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="How long a scrape counted.", show_default=False)] = None,
    served: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which model_name of a scrape.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier scenario.")] = False,
) -> None:
    """Write a scenario from a gateway's log or a saved scrape of vLLM: rate, lengths, what was measured."""
    from sim.commands.init import Asked
    from sim.commands.init import run as write

    said = Asked(out, log, prometheus, model, hardware, engine, column or (), time_unit, since, seconds, served)
    write(said, overwrite)


@app.command()
def report(
    folder: Annotated[
        str, typer.Argument(help="What run, speedup, tune, compare, sweep or plan --out wrote.", show_default=False)
    ],
    out: Annotated[str, typer.Option(help="The HTML file to write.")] = "report.html",
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier report.")] = False,
) -> None:
    """One HTML file from a result folder: answer first, pictures, sortable tables; opens without a network."""
    from analysis.report import save_report

    typer.echo(f"wrote {save_report(folder, out, overwrite)}")


@app.command()
def validate(
    only: Annotated[str | None, typer.Option(help="Comparisons: counts,tokens,distribution,seconds.")] = None,
    published: Annotated[bool, typer.Option("--published", help="Published numbers beside ours instead.")] = False,
    deck: Annotated[str | None, typer.Option(help="With --published: of one lecture, in slide order: 000.")] = None,
    only_label: Annotated[str | None, typer.Option(help="With --published: identity, prediction, data ...")] = None,
    silicon: Annotated[bool, typer.Option("--silicon", help="Measured hardware, on cases no fit has seen.")] = False,
    kernels: Annotated[str | None, typer.Option(help="A file of kernel timings, predicted row by row.")] = None,
    serving: Annotated[str | None, typer.Option(help="Results of a serving benchmark, predicted row by row.")] = None,
    scenario: Annotated[str | None, typer.Option(help="With --serving: model, hardware, engine, layout.")] = None,
    device: Annotated[str | None, typer.Option(help="With --kernels, --serving: the hardware that was timed.")] = None,
    engine: Annotated[str | None, typer.Option(help="Likewise: an engine, or a kernel library for --kernels.")] = None,
    profile: Annotated[str | None, typer.Option(help="With --kernels: a profile of calibrate --kernels.")] = None,
    out: Annotated[str | None, typer.Option(help="Likewise: every row and prediction (CSV, Parquet).")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold the simulator against really run models, published numbers or measured hardware. Exit status 1 on a miss."""
    from sim import show
    from sim.validate import COMPARISONS, chosen
    from sim.validate import validate as compare_all

    timed = {"--kernels": kernels is not None, "--serving": serving is not None}
    given = {"--published": published, "--silicon": silicon, **timed}
    if sum(given.values()) > 1:
        raise ValueError(f"{', '.join(name for name, is_given in given.items() if is_given)}: one at a time")
    loose = {"--device": device, "--engine": engine, "--profile": profile, "--out": out}
    lost = next((name for name, value in loose.items() if value is not None and not any(timed.values())), None)
    lost = "--profile" if profile is not None and kernels is None else lost
    if lost is not None:
        raise ValueError(f"{lost}: says something of kernel timings; add --kernels FILE")
    if scenario is not None and serving is None:
        raise ValueError("--scenario: says what a serving benchmark measured; add --serving FILE")
    if published:
        _published(only, deck, only_label, as_json)
        return
    if serving is not None:
        from sim.commands import serving as of_serving

        of_serving.validate(serving, scenario, device, engine, out, as_json)
        return
    if silicon or kernels is not None:
        _silicon(as_json) if silicon else _kernels(str(kernels), device, engine, profile, out, as_json)
        return
    if deck is not None or only_label is not None:
        option = "--deck" if deck is not None else "--only-label"
        raise ValueError(f"{option}: chooses among published rows; add --published")
    rows = compare_all(chosen(only) if only is not None else COMPARISONS)
    show.as_json([{**vars(r), "passed": r.passed} for r in rows]) if as_json else show.validation(rows)
    if not all(r.passed for r in rows):
        raise typer.Exit(1)


def _silicon(as_json: bool) -> None:
    from sim import show
    from sim.silicon.sections import run

    sections = run()
    show.as_json([show.section_plain(s) for s in sections]) if as_json else show.silicon(sections)
    if not all(s.passed for s in sections):
        raise typer.Exit(1)


def _kernels(
    file: str, device: str | None, engine: str | None, profile: str | None, out: str | None, as_json: bool
) -> None:
    from sim import show
    from sim.silicon.users import predict, write_rows

    if device is None:
        raise ValueError("--kernels: add --device NAME: the hardware that was timed")
    if out is not None and Path(out).suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out: {out}: a table's name ends in .csv or .parquet")
    found = predict(file, device, engine, profile)
    if out is not None:
        write_rows(found, Path(out))
    if as_json:
        rows = len(found.table.frame)
        show.as_json({"file": file, "device": device, "kind": found.table.kind, "rows": rows, "notes": found.notes,
                      "tables": [vars(r) for r in found.rows]})  # fmt: skip
        return
    show.judged(f"{file} on {device}", found.rows, found.notes)


def _published(only: str | None, deck: str | None, only_label: str | None, as_json: bool) -> None:
    from sim import show
    from sim.published import held

    if only is not None:
        raise ValueError("--only: names comparisons with run models; --published takes --deck and --only-label")
    rows = held(deck, only_label)
    show.as_json([show.published_plain(h) for h in rows]) if as_json else show.published(rows, deck)
    if not all(h.passed for h in rows):
        raise typer.Exit(1)


@app.command()
def calibrate(
    here: Annotated[bool, typer.Option("--here", help="Measure this machine.")] = False,
    kernels: Annotated[list[str] | None, typer.Option(help="Fit a device to a file of kernel timings.")] = None,
    serving: Annotated[list[str] | None, typer.Option(help="Fit an engine to results of a serving benchmark.")] = None,
    more: Annotated[list[str] | None, typer.Argument(help="Further files of --serving.", show_default=False)] = None,
    scenario: Annotated[str | None, typer.Option(help="With --serving: model, hardware, engine, layout.")] = None,
    engine: Annotated[str | None, typer.Option(help="With --serving: whose terms the fit starts from.")] = None,
    out: Annotated[str, typer.Option(help="Profile to write; with --here the engine's lies beside it.")] = "here.yaml",
    device: Annotated[str, typer.Option(help="cpu (NumPy), cuda, torch-cpu; else: the hardware measured.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="BLAS threads; with 1, CPU time is measured.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Of everything; intervals are their range.")] = 3,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier profile.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure this machine, or fit kernel timings or served requests, and write profiles with intervals."""
    from datetime import date

    from sim import show
    from sim.calibrate import calibrate as measure
    from sim.calibrate import on_torch
    from sim.calibration.here_steps import series
    from sim.calibration.torch_device import require
    from sim.silicon.plots import pictures
    from sim.validation.seconds import rows, steps

    path = Path(out)
    if (bool(here) + bool(kernels) + bool(serving)) != 1:
        choices = "--here (measures this machine, a minute or two), --kernels FILE or --serving FILE"
        raise ValueError(f"calibrate: add {choices}, one of them")
    lost = {"FILE": more, "--scenario": scenario, "--engine": engine}
    if not serving and any(lost.values()):
        raise ValueError(f"{next(key for key in lost if lost[key])}: says something of served requests; add --serving")
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out: {out}: a profile's name ends in .yaml")
    if path.exists() and not overwrite:
        raise ValueError(f"--out: {out} exists; add --overwrite, or choose another name")
    if serving:
        from sim.commands.calibrate_serving import calibrate as fit_served

        fit_served([*serving, *(more or [])], scenario, None if device == "cpu" else device, engine, path, as_json)
        return
    if kernels:
        _fit_kernels(kernels, device, path, as_json)
        return
    require(device)
    sizes = path.stem, date.today().year, threads, repeats
    found = measure(*sizes) if device == "cpu" else on_torch(device, *sizes)
    judged = [] if device == "cpu" else rows(steps(found.session))
    files = (*found.save(path), path.with_suffix(".png"))
    pictures(series(found.machine, found.session), f"{path.stem}: steps of the fit", files[2])
    if as_json:
        said = {"machine": found.machine, "ranges": found.ranges, "rates": found.by_threads, "plot": str(files[2])}
        show.as_json({**said, **({"judged": [vars(r) for r in judged]} if judged else {})})
    elif device == "cpu":
        show.calibration(found, files[:2])
        typer.echo(f"plot: {files[2]}")
    else:
        show.validation(judged)
        typer.echo(f"hardware: {files[0]}\nengine: {files[1]}\nplot: {files[2]}")


def _fit_kernels(files: list[str], device: str, path: Path, as_json: bool) -> None:
    from sim import show
    from sim.silicon.plots import pictures
    from sim.silicon.users import calibrated

    if device in ("cpu", "cuda", "torch-cpu"):
        raise ValueError("--kernels: add --device NAME: the hardware that was timed (decodesim profiles)")
    found = calibrated(files, device)
    found.save(path)
    picture = path.with_suffix(".png")
    pictures({device: (found.measured, found.fitted)}, f"{device}: fitted", picture)
    if as_json:
        show.as_json({"profile": str(path), "plot": str(picture), "notes": found.notes,
                      "folds": [vars(r) for r in found.folds]})  # fmt: skip
        return
    title = f"{device}: each fifth of the shapes predicted by a fit of the others; then all by other devices alone"
    show.judged(title, found.folds, found.notes)
    typer.echo(f"profile: {path}\nplot: {picture}")


@reference_app.command("models")
def reference_models(as_json: AsJson = False) -> None:
    """List the models that can be run for real."""
    from sim import show
    from sim.validation.models import known

    rows = [
        {"name": k.name, "installed": k.path is not None, "path": k.path and str(k.path), "about": k.about}
        for k in known().values()
    ]
    show.as_json(rows) if as_json else show.witnesses(rows)


@reference_app.command("run")
def reference_run(
    model: Annotated[str, typer.Option(help="A name from `decodesim reference models`, a folder or a .gguf file.")],
    policy: Annotated[str, typer.Option(help="Any that the witness runs: tree, tandem ...")] = "speculative",
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "It is a truth universally acknowledged, that",
    draft: Annotated[str | None, typer.Option(help="The model that drafts; the policy's own where not given.")] = None,
    gamma: Annotated[int | None, typer.Option(min=1, max=64, help="Drafted tokens a round.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Option of the policy's twin: KEY=VALUE.")] = None,
    tokens: Annotated[int, typer.Option(min=1, max=4096, help="Tokens to write.")] = 48,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0: greedy; 1 where a policy samples.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Decode for real: accepted drafts green, rejected red (or [kept] <lost>), the simulator's prediction beside."""
    from sim import show
    from sim.scenario import override
    from sim.validation.beside import Run, run_beside

    options: dict[str, Any] = {}
    for setting in settings or []:
        override(options, setting)
    transcript, pairs = run_beside(Run(model, policy, prompt, draft, gamma, tokens, temperature, seed, options))
    if as_json:
        said = {"text": transcript.text, "tokens": transcript.tokens, "passes": transcript.passes}
        show.as_json({**said, "pairs": pairs})
    else:
        show.decoding(transcript, pairs)


@reference_app.command("betas")
def reference_betas(
    out: Annotated[str, typer.Option(help="CSV file to write; `acceptance: {kind: empirical, betas: FILE}` reads it.")],
    model: Annotated[str, typer.Option(help="The target: one of the shipped family.")] = "primary",
    draft: Annotated[str, typer.Option(help="The draft, likewise.")] = "drafter",
    prompts: Annotated[int, typer.Option(min=1, max=1000, help="Prompts of held-out text A.")] = 40,
    tokens: Annotated[int, typer.Option(min=2, max=220, help="Tokens to write after each.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of target and draft; 0: greedy.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Measure, token by token, how likely a draft would have been kept."""
    from sim.reference.replay import mean_beta
    from sim.validation.models import named
    from sim.validation.tokens import held_out, measure_betas, write_betas

    found = measure_betas(named(model), named(draft), held_out("a", prompts), tokens, temperature, seed)
    write_betas(found, Path(out))
    typer.echo(f"wrote {out}: {sum(map(len, found)):,} tokens of {len(found)} texts, alpha {mean_beta(found):.4f}")


class _Parts:
    """What explain and roofline need of a scenario; encoder models included, which no run serves."""

    def __init__(self, scenario: Scenario) -> None:
        from sim.analytic.cost import Layout
        from sim.build import build_scenario, load_device, load_engine, load_precision, load_shape, with_kernels

        self.shape = load_shape(scenario.model, "model")
        self.draft_bytes, self.variants = 0.0, ()
        if self.shape.encoder or not self.shape.layers:
            self.engine = load_engine(scenario.engine)
            self.device = with_kernels(load_device(scenario.hardware), self.engine)
            self.precision, self.layout = load_precision(scenario), Layout(**scenario.layout.model_dump())
            self.memory_fraction = scenario.kv.memory_fraction
            return
        built: Built = build_scenario(scenario)
        self.device, self.engine, self.precision, self.layout = (
            built.device, built.engine, built.precision, built.layout,
        )  # fmt: skip
        self.memory_fraction = built.scenario.kv.memory_fraction
        self.draft_bytes = dict(built.budget.lines)["draft weights"]
        self.variants = built.costs[0].variants


def _explained(
    file: str, settings: list[str] | None, batch: int, prompt: int, context: int
) -> tuple[Explanation, _Parts]:
    """The answer of `explain` for a scenario, and what it was asked about."""
    from sim.ask import explain as ask

    parts = _parts(file, settings)
    answer: Explanation = _named(file, lambda: ask(
        parts.shape, parts.device, parts.precision, parts.layout, engine=parts.engine,
        memory_fraction=parts.memory_fraction, batch=batch, prompt=prompt, context=context,
        draft_bytes=parts.draft_bytes, variants=parts.variants,
    ))  # fmt: skip
    return answer, parts


def _round(
    file: str, settings: list[str] | None, batch: int, context: int, out: str | None, as_json: bool
) -> None:
    """One decoding round of a scenario's policy as a table, and as a picture."""
    from analysis.plots import save_figure
    from analysis.plots.round import round_figure
    from analysis.round_picture import round_of
    from sim import show
    from sim.build import build_scenario
    from sim.scenario import Scenario

    scenario = Scenario.load(file, settings or ())
    found = _named(file, lambda: round_of(build_scenario(scenario), batch, context))
    if out is not None:
        save_figure(round_figure(found), out)
    show.as_json(found) if as_json else show.decoding_round(found)
    if out is not None and not as_json:
        typer.echo(f"wrote {out}")


def _layouts(
    file: str, settings: list[str] | None, devices: int, asked: tuple[int, int, int], as_json: bool
) -> None:
    """Every layout of a scenario's model over so many devices, legal or not."""
    from sim import show
    from sim.layouts import compared
    from sim.scenario import Scenario

    scenario = _named(file, lambda: Scenario.load(file, settings or ()))
    rows = _named(file, lambda: compared(scenario, devices, *asked))
    show.as_json(rows) if as_json else show.layouts(rows, f"{scenario.model} on {devices} x {scenario.hardware}")


def _finetuned(file: str, settings: list[str] | None, tokens: int, as_json: bool) -> None:
    """Memory of every way to fine-tune a scenario's model, adapters as its own `peft` variant says."""
    from sim import show
    from sim.build import expanded, load_device, load_shape
    from sim.finetune import memory_table
    from sim.scenario import Scenario
    from sim.variants import build as build_variants
    from sim.variants.peft import Peft

    scenario = _named(file, lambda: expanded(Scenario.load(file, settings or ())))
    shape, device = _named(file, lambda: (load_shape(scenario.model, "model"), load_device(scenario.hardware)))
    found = _named(file, lambda: [v for v in build_variants(scenario.variants) if isinstance(v, Peft)])
    rows = _named(file, lambda: memory_table(shape, found[0] if found else None, tokens))
    if as_json:
        show.as_json([{**vars(r), "total_bytes": r.total_bytes, "fits": r.total_bytes <= device.memory_bytes}
                      for r in rows])  # fmt: skip
    else:
        show.finetuning(rows, shape, device, tokens)


def _parts(file: str, settings: list[str] | None) -> _Parts:
    from sim.scenario import Scenario

    scenario = Scenario.load(file, settings or ())
    parts: _Parts = _named(file, lambda: _Parts(scenario))
    return parts


def _named(file: str, build: Any) -> Any:
    """Run ``build``; its errors begin with the file they are about."""
    try:
        return build()
    except ValueError as error:
        if str(error).startswith(file):
            raise
        raise ValueError(f"{file}: {error}") from None


def _folder(file: str, out: str | None) -> str:
    """Where results go: what was asked for, or a new folder under runs/."""
    if out is not None:
        return out
    base = Path("runs") / Path(file).stem
    base.parent.mkdir(exist_ok=True)
    number, folder = 1, base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return str(folder)


def _list_plugins(package: str, as_json: bool) -> None:
    from sim import show
    from sim.plugin import catalogue

    rows = catalogue(package)
    show.as_json(rows) if as_json else show.plugins(rows)
    if package == "sim.policies" and not as_json:
        from sim.names import meanings

        show.names(meanings())


def main() -> None:
    """Entry point: bad input is one line on stderr and exit status 2; a closed pipe is no error, Ctrl-C is 130."""
    try:
        app(prog_name="decodesim")
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            sys.exit(0)
        line = " ".join(str(error).split()) or "not enough memory"
        typer.echo(f"decodesim: error: {line}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
