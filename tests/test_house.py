"""The house stands as docs/design.md says, and every rule that says so is seen to fail on a planted fault."""

import os
import re
from pathlib import Path

import pytest
from house import diagram, habits, layers
from house.tree import Tree

ROOT = Path(__file__).parents[1]
RULES = {
    "layers": layers.layers,
    "acyclic": layers.acyclic,
    "clock": layers.clock,
    "witness": layers.witness,
    "data": layers.data,
    "tables": layers.tables,
    "plotting": layers.plotting,
    "declared": layers.declared,
    "luck": habits.luck,
    "silence": habits.silence,
    "no-now": habits.no_now,
    "short": habits.short,
    "documented": habits.documented,
    "portable": habits.portable,
    "light": habits.light,
}
HOME = "/" + "home/someone"

DESIGN = """# The house

## 2. The rooms

```
notebooks/   sim/cli.py                   may import everything
analysis/    sim/run.py scenario.py validate.py
                                          analysis sees tables, not simulators
sim/serving/     replica  cluster         the clock: simpy
                 luck  record             no clock of their own
sim/policies/  sim/routers/               decisions, one per file
sim/variants/                             rewrite the ops
sim/request.py                            what a trace says of a request
sim/analytic/    cost                     (device, engine) -> seconds, joules, bytes
                 roofline  placement      one op on one device
                 work                     a pass as named ops
                 model  hardware          what and where
```
"""

# rule, file, its body: what must be caught, and by this rule alone.
PLANTED = [
    ("layers", "sim/analytic/model.py", "from sim.analytic import cost"),
    ("layers", "sim/analytic/work.py", "import sim.analytic.roofline"),
    ("layers", "sim/policies/chain.py", "def late():\n    'Waits.'\n    import sim.serving.luck\n    return 1"),
    ("layers", "sim/serving/kv.py", "from .replica import Replica"),
    ("layers", "sim/serving/replica.py", "from sim import Scenario"),
    ("layers", "sim/scenario.py", "from sim.cli import app"),
    ("layers", "sim/analytic/new_room.py", "from sim.analytic.cost import PassCost"),
    ("layers", "sim/variants/quantize.py", "from analysis import metrics"),
    ("acyclic", "sim/analytic/placement.py", "from sim.analytic.roofline import fits"),
    ("clock", "sim/serving/horizon.py", "import simpy"),
    ("clock", "sim/run.py", "def go():\n    'Goes.'\n    from simpy.core import Environment\n    return Environment"),
    ("witness", "sim/reference/transformer.py", "from sim.analytic import work"),
    ("witness", "sim/reference/transformer.py", "from ..request import Request"),
    ("witness", "sim/reference/replay.py", "import workloads"),
    ("witness", "sim/policies/chain.py", "from sim.reference import transformer"),
    ("data", "workloads/trace.py", "from sim.request import Request"),
    ("data", "hardware_profiles/__init__.py", "import workloads.trace"),
    ("tables", "analysis/report.py", "from sim.serving import record"),
    ("tables", "analysis/report.py", "import sim.run"),
    ("plotting", "sim/run.py", "import matplotlib.pyplot as plt"),
    ("plotting", "sim/analytic/cost.py", "def plot():\n    'Draws.'\n    import matplotlib\n    return matplotlib"),
    ("declared", "sim/scenario.py", "import requests"),
    ("declared", "sim/reference/checkpoint.py", "import torch"),
    ("declared", "sim/analytic/cost.py", "def f():\n    'Waits.'\n    import scypi\n    return scypi"),
    ("luck", "sim/policies/chain.py", "import random"),
    ("luck", "sim/serving/luck.py", "import numpy as np\nnp.random.seed(0)"),
    ("luck", "workloads/synthetic.py", "import numpy as np\nX = np.random.choice([1, 2])"),
    ("luck", "workloads/synthetic.py", "import numpy as np\nX = np.random.default_rng()"),
    ("luck", "workloads/synthetic.py", "from numpy.random import Philox\nX = Philox()"),
    ("luck", "workloads/synthetic.py", "from numpy.random import shuffle"),
    ("silence", "sim/run.py", "print('done')"),
    ("silence", "analysis/report.py", "import sys\nsys.stdout.write('done')"),
    ("no-now", "sim/serving/record.py", "from datetime import datetime\nX = datetime.now()"),
    ("no-now", "sim/serving/record.py", "import datetime\nX = datetime.datetime.now(datetime.UTC)"),
    ("no-now", "sim/run.py", "import time\nX = time.time()"),
    ("no-now", "sim/serving/replica.py", "import time\nX = time.perf_counter()"),
    ("short", "sim/run.py", "def long():\n    'Long.'\n" + "    x = 1\n" * 59),
    ("documented", "sim/run.py", "def bare():\n    return 1"),
    ("documented", "sim/run.py", "class Said:\n    'Said.'\n\n    def bare(self):\n        return 1"),
    ("portable", "sim/run.py", f"PLACE = '{HOME}/traces'"),
    ("portable", "docs/page.md", f"see {HOME}/notes"),
]
# Beside the faults: what is allowed, and close to each of them.
ALLOWED = {
    "docs/design.md": DESIGN,
    "pyproject.toml": (ROOT / "pyproject.toml").read_text("utf-8"),
    "README.md": "See https://example.org/home/page and docs/tmp/x.",
    "sim/__init__.py": "from sim.scenario import Scenario\nfrom sim.run import simulate",
    "sim/analytic/__init__.py": "from sim.analytic.cost import PassCost",
    "sim/analytic/model.py": "X = 1",
    "sim/analytic/work.py": "from sim.analytic import model",
    "sim/analytic/roofline.py": "from .work import Op\nfrom . import placement",
    "sim/analytic/placement.py": "",
    "sim/analytic/cost.py": "import numpy as np\nimport yaml\nfrom sim.analytic import model, roofline",
    "sim/analytic/hardware.py": "import hardware_profiles",
    "sim/request.py": "import workloads",
    "sim/serving/luck.py": "import numpy as np\nG = np.random.Generator(np.random.Philox(key=1))",
    "sim/serving/record.py": "def fmt(time):\n    'Text.'\n    return time.time_of_day()",
    "sim/serving/replica.py": "import simpy\nfrom sim.serving import luck\nfrom sim.analytic.cost import PassCost",
    "sim/serving/cluster.py": "from sim.serving.replica import Replica",
    "sim/run.py": "import time\nfrom sim.serving.cluster import run\nfrom analysis import metrics\n"
    "X = time.perf_counter()\ndef plot():\n    'Draws.'\n    import matplotlib.pyplot as plt\n    return plt",
    "sim/scenario.py": "def short():\n    'Fits.'\n" + "    x = 1\n" * 58,
    "sim/validate.py": "from sim.reference import transformer",
    "sim/cli.py": "import sim.run\nfrom datetime import datetime\nprint(datetime.now())",
    "sim/reference/transformer.py": "from sim.analytic.model import X\nfrom sim.reference import meter\n"
    "def parity():\n    'Compares.'\n    import torch\n    return torch",
    "sim/reference/meter.py": "import time\nX = time.perf_counter()",
    "sim/reference/training/__main__.py": "import torch\nprint('step 1')",
    "analysis/metrics.py": "import matplotlib.pyplot as plt\nfrom sim.ask import explain",
    "workloads/trace.py": "from workloads import readers\nimport pyarrow",
    "hardware_profiles/__init__.py": "class _Private:\n    def bare(self):\n        return 1",
}


def build(root: Path, files: dict[str, str]) -> Tree:
    """A tree of these files; each Python file gets a docstring."""
    for path, body in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f'"""A file."""\n{body}\n' if path.endswith(".py") else body, "utf-8")
    return Tree(root)


@pytest.fixture(scope="module")
def house() -> Tree:
    """The checkout itself."""
    return Tree(ROOT)


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(house: Tree, rule: str) -> None:
    """No file of the checkout breaks the rule."""
    faults = list(RULES[rule](house))
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(("rule", "path", "body"), PLANTED, ids=[f"{r}-{p}" for r, p, _ in PLANTED])
def test_a_planted_fault_is_caught(tmp_path: Path, rule: str, path: str, body: str) -> None:
    """The rule names the file that breaks it; no other rule is disturbed (an upward import may close a cycle)."""
    tree = build(tmp_path, {**ALLOWED, path: body})
    faults = {name: list(check(tree)) for name, check in RULES.items()}
    assert any(f.startswith(f"{path}:") for f in faults.pop(rule))
    assert not {name for name, found in faults.items() if found} - ({"acyclic"} if rule == "layers" else set())


def test_what_is_allowed_is_not_caught(tmp_path: Path) -> None:
    """A tree that keeps close to every rule without breaking one has no fault."""
    tree = build(tmp_path, ALLOWED)
    assert not [fault for check in RULES.values() for fault in check(tree)]


def test_a_module_without_a_docstring_is_caught(tmp_path: Path) -> None:
    """The first line of a file says what it is."""
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim/run.py").write_text("X = 1\n", "utf-8")
    assert list(habits.documented(Tree(tmp_path))) == ["sim/run.py:1: module without a docstring"]


def test_a_heavy_file_is_caught(tmp_path: Path) -> None:
    """Forty megabytes are too many, one byte less is not."""
    heavy = tmp_path / "trace.bin"
    heavy.write_bytes(b"")
    os.truncate(heavy, habits.LARGEST_REPOSITORY_BYTES - 1)
    assert not list(habits.light(Tree(tmp_path)))
    os.truncate(heavy, habits.LARGEST_REPOSITORY_BYTES)
    assert [fault.split(":")[0] for fault in habits.light(Tree(tmp_path))] == ["trace.bin"]


def test_the_diagram_is_read_as_drawn(tmp_path: Path) -> None:
    """Rooms, files and comments of the drawing are told apart; unnamed files stand lowest in their room."""
    lines = build(tmp_path, ALLOWED) and diagram.read(tmp_path).lines
    assert [sorted(line) for line in lines] == [
        ["sim.analytic.hardware", "sim.analytic.model"],
        ["sim.analytic.work"],
        ["sim.analytic.placement", "sim.analytic.roofline"],
        ["sim.analytic.cost"],
        ["sim.request"],
        ["sim.variants"],
        ["sim.policies", "sim.routers"],
        ["sim.serving.luck", "sim.serving.record"],
        ["sim.serving.cluster", "sim.serving.replica"],
        ["analysis", "sim.run", "sim.scenario", "sim.validate"],
        ["notebooks", "sim.cli"],
    ]
    where = ["sim.serving", "sim.serving.new", "sim.new", "sim", "sim.policies.new", "sim.__main__", "analysis.new"]
    assert [diagram.read(tmp_path).line_of(m) for m in where] == [8, 7, 0, 9, 6, 10, 9]


def test_the_design_page_names_only_what_may_exist(house: Tree) -> None:
    """The page of this checkout has a line for the clock, for runs, and one file on one line only."""
    drawn = diagram.read(ROOT)
    names = [name for line in drawn.lines for name in line]
    assert len(names) == len(set(names))
    clocks = (
        "clock", "replica", "cluster", "pools", "fleet", "gateway", "sight", "evacuate", "link", "faults", "autoscale",
        "outages", "restarts", "events",
    )  # fmt: skip
    assert drawn.clocked <= {f"sim.serving.{n}" for n in clocks}
    assert 0 < drawn.deciding < len(drawn.lines) - 1


def test_function_lengths(house: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    """Functions are short as a habit: a median of 13 lines at most, a p90 under 30; printed for the record."""
    line = habits.report(house)
    with capsys.disabled():
        print(f"\n{line}")
    median, p90 = (float(n) for n in re.findall(r"(?:median|p90) ([\d.]+)", line))
    assert median <= 13 and p90 < 30


def test_the_dependency_page_lists_what_is_declared() -> None:
    """docs/dependencies.md gives a reason for every requirement, core and extra, and for nothing else."""
    page = (ROOT / "docs/dependencies.md").read_text("utf-8")
    core_page, extra_page = page.split("## Extras")
    core, extras = layers.requirements(ROOT)
    rows = re.findall(r"^\| (?!package|extra|-)([\w-]+) \|", core_page, re.MULTILINE)
    assert {row.lower() for row in rows} == core
    rows = re.findall(r"^\| (?:`\w+` )?\| ([\w-]+) \|", extra_page, re.MULTILINE)
    assert {row.lower() for row in rows} == extras
