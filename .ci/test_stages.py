"""One test for each earlier stage of .ci/run, so that pytest's last line speaks for all of them."""

import os
from pathlib import Path

import pytest

STAGES = [line.split("\t") for line in Path(os.environ["DECODESIM_STAGES"]).read_text("utf-8").splitlines()]


@pytest.mark.stage
@pytest.mark.parametrize(("name", "seconds", "status"), STAGES, ids=[s[0] for s in STAGES])
def test_stage(name: str, seconds: str, status: str) -> None:
    """The stage ended with status 0."""
    assert status == "0", f"stage {name} failed after {seconds} s; its output stands above"
