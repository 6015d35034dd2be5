"""Pages of the site that nobody writes: the command line, the Python interface and the devices, from the code itself.

MkDocs calls this file as a hook. `PAGES` says which module stands on which page; plug-ins are found, never listed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the code that is documented, not an installed copy

OBJECTS = {
    "scenario": ("Scenario and simulate", ["sim.scenario.Scenario", "sim.run.simulate", "sim.run.Result"]),
    "speedup": ("Speedup", ["sim.speedup.Ratio", "sim.speedup.Curve", "sim.speedup.curve", "sim.axes", "sim.theory"]),
    "analytic": (
        "The analytic core",
        [
            "sim.analytic.model",
            "sim.analytic.work",
            "sim.analytic.ops",
            "sim.analytic.cost",
            "sim.analytic.hardware",
            "sim.ask",
        ],
    ),
    "seams": ("What plug-ins owe", ["sim.policies", "sim.variants", "sim.schedulers", "sim.routers", "sim.plugin"]),
    "witness": (
        "The reference executor",
        ["sim.reference.decoding", "sim.reference.transformer", "sim.reference.meter", "sim.reference.acceptance"],
    ),
}
PLUGINS = {
    "policies": ("Policies", "sim/policies"),
    "variants": ("Variants", "sim/variants"),
    "schedulers": ("Schedulers", "sim/schedulers"),
    "routers": ("Routers", "sim/routers"),
    "readers": ("Trace readers", "workloads/readers"),
    "plots": ("Figures", "analysis/plots"),
}
STYLE = ".md-grid { max-width: 76rem; }\n"  # room for a line of code and for tables
ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>[~.]?")


def texts() -> dict[str, str]:
    """Every generated page by its path below docs/."""
    pages = {"command-line": command_line(), "devices": devices()}
    pages |= {name: objects(title, paths) for name, (title, paths) in OBJECTS.items()}
    pages |= {name: objects(title, modules(folder)) for name, (title, folder) in PLUGINS.items()}
    return {f"reference/{name}.md": text for name, text in pages.items()}


def objects(title: str, paths: list[str]) -> str:
    """A page of docstrings."""
    return "\n\n".join([f"# {title}", *(f"::: {path}" for path in paths)])


def modules(folder: str) -> list[str]:
    """The public modules of a folder, by name."""
    return [f"{folder.replace('/', '.')}.{p.stem}" for p in sorted((ROOT / folder).glob("[!_]*.py"))]


def command_line() -> str:
    """Every command with its arguments and options, as typer knows them."""
    import typer.main

    from sim.cli import app

    intro = "What `--help` prints. Executed examples are in [the command line](../cli.md)."
    return "\n".join(["# Commands and options", "", intro, *_group(typer.main.get_command(app), "decodesim")])


def _group(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}"
        yield from ("", f"## {full}", "", _cell(command.help or ""), "")
        if hasattr(command, "commands"):
            yield from _group(command, full)
        else:
            yield from _parameters(command)


def _parameters(command: Any) -> Iterator[str]:
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    if shown:
        yield from ("| argument or option | what it does | default |", "|---|---|---|")
    for p in shown:
        argument = p.param_type_name == "argument"
        names = [p.name.upper()] if argument else [*p.opts, *p.secondary_opts]
        said = " ".join(f"`{n}`" for n in names) + (f" `{p.metavar}`" if p.metavar and not argument else "")
        default = "" if p.default in (None, False) or callable(p.default) else f"`{_cell(str(p.default))}`"
        yield f"| {said} | {_cell(getattr(p, 'help', None) or '')} | {'required' if p.required else default} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def devices() -> str:
    """One row a device, as its profile says."""
    import hardware_profiles

    head = "| device | year | memory | bandwidth | dense bf16 or fp16 | power | memory's source, grade |"
    note = "Every number has a source: `decodesim profiles NAME`, [devices and engines](../devices.md)."
    rows = [_device(name, hardware_profiles.load(name)) for name in hardware_profiles.names()]
    return "\n".join(["# Devices that ship", "", note, "", head, "|---|---|---|---|---|---|---|", *rows])


def _device(name: str, said: dict[str, Any]) -> str:
    memory, peaks, source = said["memory"], said["peak_TFLOPs"], said["sources"].get("memory") or {}
    rate = peaks.get("bf16") or peaks.get("fp16")
    power = (said["power"] or {}).get("tdp_W")
    cells = [
        f"`{name}`",
        said["year"],
        f"{memory['capacity_GB']} GB {memory['type']}",
        f"{memory['bandwidth_GBps']} GB/s",
        f"{rate} TFLOP/s" if rate else "",
        f"{power} W" if power else "",
        _cell(f"{source.get('from', '')}, {source.get('grade', '')}".strip(", ")),
    ]
    return "| " + " | ".join("" if c is None else str(c) for c in cells) + " |"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of docs/."""
    from mkdocs.structure.files import File

    for path, text in texts().items():
        files.append(File.generated(config, path, content=text))
    files.append(File.generated(config, "site.css", content=STYLE))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name objects the way Sphinx does; a reader wants the name alone."""
    return ROLE.sub("<code>", html)
