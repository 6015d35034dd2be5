"""The command line: what it prints, where it writes, and how it says no."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.cli import main

ROOT = Path(__file__).parents[1]
FAST = ["--set", "workload.requests=40"]
FILES = ["bench.json", "cost.json", "requests.parquet", "rounds.parquet", "scenario.yaml", "summary.json", "trace.json"]


@dataclass(frozen=True)
class Said:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def decodesim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["decodesim", *arguments])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return call


def started(
    *arguments: str, code: str = "from sim.cli import main; main()", env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", **(env or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, **pipes, **options)


def refused(said: Said, *words: str) -> None:
    """Exit status 2 and one line on stderr that has these words; nothing on stdout."""
    assert said.status == 2, said
    assert said.err.startswith("decodesim: error: ") and said.err.count("\n") == 1, said.err
    assert not said.out and "Traceback" not in said.err
    for word in words:
        assert word in said.err


# --- run ----------------------------------------------------------------------------------------------------------


def test_run_prints_a_table_and_a_sentence_and_writes_a_folder(decodesim: Command, tmp_path: Path) -> None:
    """The folder is runs/NAME, and runs/NAME-2 the next time."""
    said = decodesim("run", "chat_h100", *FAST, "-q")
    assert said.status == 0 and said.err == ""
    for words in ("TTFT (ms)", "TPOT (ms)", "ITL (ms)", "E2EL (ms)", "Meets TTFT p99", "results: runs/chat_h100"):
        assert words in said.out
    assert sorted(p.name for p in (tmp_path / "runs/chat_h100").iterdir()) == FILES
    assert "results: runs/chat_h100-2" in decodesim("run", "chat_h100", *FAST, "-q").out
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["chat_h100", "chat_h100-2"]


def test_run_as_json_is_the_summary(decodesim: Command, tmp_path: Path) -> None:
    """Nothing else on stdout."""
    said = decodesim("run", "chat_h100", *FAST, "--json", "--out", "here")
    assert json.loads(said.out) == json.loads((tmp_path / "here/summary.json").read_text())


def test_the_resolved_scenario_runs_again(decodesim: Command, tmp_path: Path) -> None:
    """scenario.yaml of a result is a scenario, and gives the same summary."""
    decodesim("run", "bench_speculative", *FAST, "-q", "--out", "one")
    assert decodesim("run", "one/scenario.yaml", "-q", "--out", "two").status == 0
    first, second = ((tmp_path / name / "summary.json").read_text() for name in ("one", "two"))
    assert first == second


def test_every_shipped_scenario_runs(decodesim: Command) -> None:
    """With few requests, whatever it is."""
    from sim.scenario import shipped_scenarios

    for name in shipped_scenarios():
        assert decodesim("run", name, "--set", "workload.requests=10", "-q").status == 0, name


def test_an_older_result_is_replaced_only_on_purpose(decodesim: Command, tmp_path: Path) -> None:
    """Refused before anything runs; --overwrite replaces; what is no result is never replaced."""
    assert decodesim("run", "chat_h100", *FAST, "-q", "--out", "r").status == 0
    before = (tmp_path / "r/summary.json").read_text()
    refused(decodesim("run", "chat_h100", *FAST, "-q", "--out", "r"), "r: holds a result already", "overwrite")
    assert (tmp_path / "r/summary.json").read_text() == before
    assert decodesim("run", "chat_h100", "--set", "workload.requests=41", "-q", "--out", "r", "--overwrite").status == 0
    assert (tmp_path / "r/summary.json").read_text() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    refused(decodesim("run", "chat_h100", *FAST, "-q", "--out", "mine", "--overwrite"), "mine: holds something")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "r"]


# --- no -----------------------------------------------------------------------------------------------------------

NO = [
    (["run", "chat_h10"], ["no scenario 'chat_h10'", "did you mean 'chat_h100'?"]),
    (["run", "."], [".: no such file", "chat_h100"]),
    (["run", "nothing.yaml"], ["nothing.yaml: no such file"]),
    (["run", "chat_h100", "--set", "polcy=x"], ["chat_h100: polcy: unknown key", "did you mean 'policy'?"]),
    (["run", "chat_h100", "--set", "policy=specluative"], ["chat_h100: policy: 'specluative'", "'speculative'"]),
    (["run", "chat_h100", "--set", "slo.ttft_ms=500ms"], ["chat_h100: slo.ttft_ms: '500ms'", "number"]),
    (["run", "chat_h100", "--set", "workload.requestz=5"], ["chat_h100: workload: 'requestz'", "'requests'"]),
    (["run", "chat_h100", "--set", "workload.trace=./none.csv"], ["chat_h100: ", "none.csv"]),
    (["run", "chat_h100", "--set", "hardware=."], ["chat_h100: hardware: ", "."]),
    (["run", "chat_h100", "--set", "hardware=./none.yaml"], ["chat_h100: hardware: ./none.yaml: no such file"]),
    (["run", "chat_h100", "--set", "model=llama-3-70b"], ["chat_h100: h100-sxm: weights 141", "leaves no KV cache"]),
    (["run", "chat_h100", "--set", "workload.start_s=1e7"], ["chat_h100: workload: no request arrives"]),
    (["run", "chat_h100", "--out", "no/such/folder"], ["no/such/folder: the folder no/such does not exist"]),
    (["explain", "chat_h100", "--set", "model=h100-sxm"], ["chat_h100: model: no model config 'h100-sxm'"]),
    (["explain", "bench_speculative", "--set", "policy.gamma=0"], ["bench_speculative: policy.gamma: 0"]),
    (["roofline", "chat_h100", "--plot", "a.bmp"], ["a.bmp: a picture ends in .png, .svg, .pdf"]),
    (["roofline", "chat_h100", "--plot", "no/such/a.png"], ["no/such/a.png: cannot be written"]),
    (["profiles", "h100"], ["h100"]),
    (["profiles", "h100-sxn"], ["no device profile 'h100-sxn'", "h100-sxm"]),
    (["trace", "info", "azure-2023-cov"], ["azure-2023-cov", "azure-2023-conv"]),
    (["compare", "chat_h100"], ["compare: give a second scenario, or --set"]),
    (["compare", "chat_h100", "chat_h10"], ["no scenario 'chat_h10'"]),
]


@pytest.mark.parametrize(("arguments", "words"), NO, ids=[" ".join(a)[:50] for a, _ in NO])
def test_bad_input_is_one_line_and_leaves_nothing(
    decodesim: Command, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    """Exit status 2, file and key and what is allowed, no result folder."""
    said = decodesim(*arguments)
    if arguments == ["profiles", "h100"]:
        assert said.status == 0  # an alias
        return
    refused(said, *words)
    assert not [p for p in tmp_path.rglob("*") if p.name != "runs"]


def test_a_bad_option_is_said_by_name(decodesim: Command) -> None:
    """Typer's own words, same status."""
    for arguments in (["run", "chat_h100", "--outt", "x"], ["explain", "chat_h100", "--batch", "0"], ["rnu"], ["run"]):
        said = decodesim(*arguments)
        assert said.status == 2 and "Traceback" not in said.err and said.err


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission(decodesim: Command, tmp_path: Path) -> None:
    """Refused before the run."""
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(decodesim("run", "chat_h100", *FAST, "--out", "locked/r"), "locked/r: no permission")


def test_a_file_where_the_folder_should_be(decodesim: Command, tmp_path: Path) -> None:
    """Refused before the run."""
    (tmp_path / "r").write_text("x")
    refused(decodesim("run", "chat_h100", *FAST, "--out", "r"), "r: is not a folder")
    refused(decodesim("run", "chat_h100", *FAST, "--out", "r/s"), "r/s: the folder r does not exist")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: one line, status 2, no folder, nothing beside it."""


    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = started("run", "chat_h100", "--set", "workload.requests=3000", "-q", cwd=tmp_path, preexec_fn=full)
    out, err = process.communicate(timeout=120)
    refused(Said(process.returncode, out, err), "runs/chat_h100: cannot be written")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_damaged_trace_is_kept_as_partial(decodesim: Command, tmp_path: Path) -> None:
    """Exit status 1, the line of the damage, and a result folder with what came before."""
    rows = "".join(f"{i},30,5\n" for i in range(50))
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows + "oops\n")
    (tmp_path / "s.yaml").write_text("model: smollm2-135m\nhardware: l4\nworkload: {trace: t.csv}\n")
    said = decodesim("run", "s.yaml", "-q", "--out", "r")
    assert said.status == 1 and "t.csv line 52" in said.err and "Traceback" not in said.err
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    assert summary["complete"] is False and summary["requests"]["finished"] == 50
    assert any("ended early" in warning for warning in summary["warnings"])


LOUD = """
import sys
from sim.cli import main
from sim.serving.cluster import Cluster

def run(self, run=Cluster.run):
    print("begun", flush=True)
    return run(self)

Cluster.run = run
main()
"""


def interrupted(folder: Path, begun: bool) -> Said:
    """`run` of an hour's work, with Ctrl-C a second after the clock has started, or long before."""
    hour = ["--set", "workload.requests=10000000"]
    process = started("run", "bench_autoregressive", *hour, "-q", "--out", "r", code=LOUD, cwd=folder)
    if begun:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(1.0 if begun else 0.15)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return Said(process.returncode, out, err)


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    """Exit status 130; finished requests stay finished, those under way are partial, and the folder is whole."""
    said = interrupted(tmp_path, begun=True)
    assert said.status == 130 and "interrupted" in said.err and "Traceback" not in said.err
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    assert summary["complete"] is False
    counts = summary["requests"]
    assert counts["finished"] > 10 and counts["partial"] > 0
    assert counts["finished"] + counts["partial"] + counts["rejected"] == counts["arrived"]
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == FILES


def test_ctrl_c_before_the_run_leaves_nothing(tmp_path: Path) -> None:
    """Exit status 130 or the signal itself, no folder."""
    said = interrupted(tmp_path, begun=False)
    assert said.status in (130, -signal.SIGINT) and not list(tmp_path.iterdir())


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """`decodesim profiles | head -1` ends in peace."""
    script = f'set -o pipefail; "{sys.executable}" -c "from sim.cli import main; main()" schema | head -1'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60)
    assert "Traceback" not in done.stderr and done.stdout == "{\n"


# --- the other commands -------------------------------------------------------------------------------------------


def test_explain_and_roofline(decodesim: Command, tmp_path: Path) -> None:
    """The arithmetic of llama-3.1-8b on an H100 without a clock, as a table, as JSON, as a picture."""
    said = decodesim("explain", "chat_h100", "--batch", "8", "--context", "2000")
    assert said.status == 0 and "weights" in said.out and "saturates:" in said.out
    answer = json.loads(decodesim("explain", "chat_h100", "--batch", "8", "--json").out)
    assert answer["parameters"] == 8_030_261_248 and answer["kv_bytes_per_token"] == 131072
    assert decodesim("roofline", "chat_h100", "--plot", "r.svg").out == "wrote r.svg\n"
    assert (tmp_path / "r.svg").read_text().startswith("<?xml")


def test_explain_takes_what_run_does_not(decodesim: Command) -> None:
    """An encoder-decoder model has memory and intensity."""
    assert decodesim("explain", "chat_h100", "--set", "model=t5-v1.1-base").status == 0


def test_lists(decodesim: Command) -> None:
    """What there is to choose from."""
    assert "h100-sxm" in decodesim("profiles").out
    assert yaml.safe_load(decodesim("profiles", "h100-sxm").out)["name"] == "h100-sxm"
    assert len(json.loads(decodesim("profiles", "--json").out)) > 30
    assert "llama-3.1-8b" in decodesim("models").out
    assert {"name": "smollm2-135m", "parameters": 134_515_008} in json.loads(decodesim("models", "--json").out)
    assert "bench_speculative" in decodesim("scenarios").out
    assert "gamma=4" in decodesim("policies").out
    assert {"autoregressive", "speculative"} <= {p["name"] for p in json.loads(decodesim("policies", "--json").out)}
    assert decodesim("variants").status == 0
    assert "least_outstanding" in decodesim("routers").out
    assert "token_budget" in decodesim("schedulers").out
    assert "azure-2023-conv" in decodesim("trace", "list").out
    assert json.loads(decodesim("trace", "info", "sharegpt-300", "--json").out)["rows"] == 300
    assert json.loads(decodesim("schema").out)["title"] == "decodesim scenario"


def test_compare(decodesim: Command, tmp_path: Path) -> None:
    """A table, a waterfall, a sentence, and a folder."""
    what = ["--both", "workload.requests=60", "--set", "hardware=h200-sxm"]
    said = decodesim("compare", "chat_h100", *what, "--out", "c", "-q")
    assert said.status == 0, said.err
    for words in ("chat_h100  ->  chat_h100 hardware=h200-sxm", "TTFT p99 (ms)", "95 % interval", "weights", "shorter"):
        assert words in said.out
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["compare.json", "waterfall.png"]
    refused(decodesim("compare", "chat_h100", "--set", "hardware=h200-sxm", "--out", "c"), "c: holds a result already")
    again = decodesim("compare", "chat_h100", "chat_h100", *what, "--json")
    assert json.loads(again.out)["differences"] == json.loads((tmp_path / "c/compare.json").read_text())["differences"]


# --- start-up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["compare", "-h"], ["trace", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    """Help imports none of the heavy libraries (pydantic is typer's own, from one version on)."""
    code = (
        "import sys\nfrom sim.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'matplotlib', 'simpy', 'yaml'} & set(sys.modules)\n"
        "sys.stderr.write(' '.join(sorted(heavy)))"
    )
    process = started(*arguments, code=code)
    out, err = process.communicate(timeout=60)
    assert err == "" and "Usage: decodesim" in out


def test_a_run_needs_no_pandas(tmp_path: Path) -> None:
    """Frames are for Python users; the command line writes Parquet without them."""
    code = (
        "import sys\nfrom sim.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(' '.join({'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    process = started("run", "chat_h100", *FAST, "-q", code=code, cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert err == "" and "results:" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """The script for a shell, and the words that it asks for."""
    process = started("", env={"_DECODESIM_COMPLETE": f"source_{shell}"})
    script, _ = process.communicate(timeout=60)
    assert "_DECODESIM_COMPLETE" in script and "decodesim" in script
    asked = {
        "COMP_WORDS": "decodesim com", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "decodesim com",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    process = started(env={"_DECODESIM_COMPLETE": f"complete_{shell}", **asked})
    words, err = process.communicate(timeout=60)
    assert "compare" in words, err
