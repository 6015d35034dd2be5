"""The page as a Dash app: what stands on it, and what happens when a control moves. Every tab keeps its own state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.app import asked, words
from sim.app.answer import Answer, answer
from sim.app.asked import HERE, LISTS, SLIDERS
from sim.app.door import guard
from sim.app.figures import TALL, Drawn, figures, latency_figure
from sim.app.runs import Runs
from sim.scenario import shipped_scenarios

__all__ = ["create"]

ASSETS = Path(__file__).with_name("assets")
OF_RUN = ("rate", "output", "requests")
CONTROLS = (*LISTS, *(key for key in SLIDERS if key not in OF_RUN))
TITLES = {
    "roofline": "Roofline of one device",
    "step": "A round by what it waits for",
    "gamma": "Speedup against draft length",
    "batch": "Speedup against batch",
}
POLL_MS = 500
GRAPH = {"displayModeBar": False, "responsive": True}
SIZE = {"height": f"{TALL}px"}
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title>{%css%}</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def create(port: int, runs: Runs) -> Any:
    """A Dash app that answers at this port of the loopback; trace runs go to ``runs``. Raises ImportError."""
    from dash import Dash

    app = Dash(
        "decodesim",
        title="decodesim: what if",
        update_title=None,
        assets_folder=str(ASSETS),
        index_string=HEAD,
        serve_locally=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.layout = _layout()
    _answers(app)
    _trace_runs(app, runs)
    guard(app, port)
    return app


# -- what stands on the page


def _layout() -> Any:
    from dash import dcc, html

    start = asked.start_positions()
    return html.Main([
        dcc.Store(id="run"),
        html.H1("decodesim: what if"),
        html.P(id="problem", role="alert"),
        html.Div(className="columns", children=[
            html.Form(className="controls", title="Settings", children=[
                *(_list(key, label, list(asked.offered()[key]), start[key]) for key, label in LISTS.items()),
                *(_slider(key, start[key]) for key in CONTROLS if key in SLIDERS),
            ]),
            html.Div(className="answer", children=[
                html.P(id="sentence", role="status", **{"aria-live": "polite"}),
                html.Dl(id="facts"),
                html.Div(className="figures", children=[_graph(name, title) for name, title in TITLES.items()]),
            ]),
        ]),
        _run_part(start),
        html.H2("What the answer rests on"),
        html.Ul(id="sources"),
    ])  # fmt: skip


def _list(key: str, label: str, values: list[str], value: str) -> Any:
    """A list with its label; Dash names the button by ``KEY-value-count``, which a list of one choice leaves free."""
    from dash import dcc, html

    named = html.Label(label, id=f"{key}-value-count", htmlFor=key)
    return html.Div([named, dcc.Dropdown(id=key, options=values, value=value, clearable=False)], className="control")


def _slider(key: str, position: int) -> Any:
    """The browser's own slider: arrows, Home, End and Page keys move it."""
    from dash import dcc, html

    slider = SLIDERS[key]
    said = html.Output(slider.said(slider.values[position]), id=f"{key}-said", htmlFor=key)
    moved = dcc.Input(id=key, type="range", min=0, max=len(slider.values) - 1, step=1, value=position)
    return html.Div([html.Label(slider.label, htmlFor=key), said, moved], className="control")


def _graph(name: str, title: str) -> Any:
    from dash import dcc, html

    graph = dcc.Graph(id=f"figure-{name}", config=GRAPH, figure={"layout": {"height": TALL}}, style=SIZE)
    return html.Section([html.H2(title), html.P(id=f"caption-{name}", className="caption"), graph])


def _run_part(start: dict[str, Any]) -> Any:
    from dash import dcc, html

    return html.Section(className="run", children=[
        html.H2("A run with traffic"),
        html.Div(className="row", children=[
            _list("source", "Run", [HERE, *shipped_scenarios()], HERE), *(_slider(key, start[key]) for key in OF_RUN),
            html.Button("Start", id="start", type="button"),
            html.Button("Cancel", id="cancel", type="button", disabled=True),
        ]),
        html.Progress(id="progress", max="1", value="0", title="Progress of the run"),
        html.P(id="run-said", role="status", **{"aria-live": "polite"}),
        html.Div(id="run-result"),
        dcc.Interval(id="poll", interval=POLL_MS, disabled=True),
    ])  # fmt: skip


# -- what happens


def _answers(app: Any) -> None:
    from dash import Input, Output

    shown = [Output("problem", "children"), Output("sentence", "children"), Output("facts", "children")]
    shown += [Output("sources", "children"), *(Output(f"figure-{name}", "figure") for name in TITLES)]
    shown += [Output(f"caption-{name}", "children") for name in TITLES]
    shown += [Output("alpha", "disabled"), Output("gamma", "disabled")]

    @app.callback(*shown, *(Input(key, "value") for key in CONTROLS))  # type: ignore[untyped-decorator]
    def moved(*values: Any) -> list[Any]:
        try:
            found = answer(asked.question(dict(zip(CONTROLS, values, strict=True))))
        except ValueError as error:
            return _nothing(str(error))
        drawn = figures(found)
        options = found.question.options
        return [
            "", words.sentence(found), _facts(found), _lines(words.sources(found)),
            *(drawn[name].figure for name in TITLES), *(drawn[name].caption for name in TITLES),
            "acceptance" not in options, "gamma" not in options,
        ]  # fmt: skip

    for key in SLIDERS:
        _say(app, key)


def _say(app: Any, key: str) -> None:
    from dash import Input, Output

    @app.callback(Output(f"{key}-said", "children"), Input(key, "value"))  # type: ignore[untyped-decorator]
    def said(position: Any) -> str:
        try:
            return SLIDERS[key].said(SLIDERS[key].at(key, position))
        except ValueError as error:
            return str(error)


def _nothing(why: str) -> list[Any]:
    """A page without an answer: why, in one line."""
    from dash import no_update

    empty = Drawn({"data": [], "layout": {"height": TALL}}, "")
    figure, caption = [empty.figure] * len(TITLES), [empty.caption] * len(TITLES)
    return [" ".join(why.split()), "", [], [], *figure, *caption, no_update, no_update]


def _facts(found: Answer) -> list[Any]:
    from dash import html

    return [
        html.Div([html.Dt(name), html.Dd(number, className="number"), html.Dd(what, className="what")])
        for name, (number, what) in words.facts(found).items()
    ]


def _lines(lines: list[str]) -> list[Any]:
    from dash import html

    return [html.Li(line) for line in lines]


def _trace_runs(app: Any, runs: Runs) -> None:
    from dash import Input, Output, State, no_update

    traffic = [*CONTROLS, "source", *OF_RUN]

    @app.callback(  # type: ignore[untyped-decorator]
        Output("run", "data"), Output("run-said", "children", allow_duplicate=True), Input("start", "n_clicks"),
        State("run", "data"), *(State(key, "value") for key in traffic), prevent_initial_call=True,
    )  # fmt: skip
    def begin(_: Any, before: Any, *values: Any) -> tuple[Any, Any]:
        said = dict(zip(traffic, values, strict=True))
        try:
            if before is not None and isinstance(before, str):
                runs.cancel(before)
        except ValueError:
            pass  # forgotten long ago
        try:
            return runs.start(*asked.run_of(said["source"], said, said)), "Running: getting ready."
        except ValueError as error:
            return no_update, str(error)

    @app.callback(  # type: ignore[untyped-decorator]
        Output("run-said", "children"), Output("run-result", "children"), Output("progress", "value"),
        Output("poll", "disabled"), Output("cancel", "disabled"), Output("start", "disabled"),
        Input("poll", "n_intervals"), Input("run", "data"), Input("cancel", "n_clicks"), prevent_initial_call=True,
    )  # fmt: skip
    def poll(_: Any, name: Any, __: Any) -> tuple[Any, ...]:
        from dash import ctx

        if not isinstance(name, str):
            return "", [], "0", True, True, False
        try:
            state = runs.cancel(name) if ctx.triggered_id == "cancel" else runs.ask(name)
        except ValueError as error:
            return str(error), [], "0", True, True, False
        busy = state.status == "running"
        shown = [] if state.table is None else _result(state.table)
        far = f"{min(1.0, state.arrived / max(1, state.requests)):.3f}"
        return words.run_sentence(state), shown, far, not busy, not busy, busy


def _result(table: Any) -> list[Any]:
    from dash import dcc, html

    head = html.Tr([html.Th(text, scope="col") for text in ("", "mean", "p50", "p90", "p99")])
    rows = [
        html.Tr([html.Th(row[0], scope="row"), *(html.Td(cell) for cell in row[1:])]) for row in words.run_rows(table)
    ]
    return [
        html.Table([html.Caption("Latency of the run's requests"), html.Thead(head), html.Tbody(rows)]),
        dcc.Graph(id="figure-latency", config=GRAPH, figure=latency_figure(table["percentiles"]), style=SIZE),
        html.Ul(_lines([f"warning: {warning}" for warning in table["warnings"]])),
    ]
