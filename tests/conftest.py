"""What every test shares: one thread per process, no windows, fixed random examples, marks by fixture."""

import os

import pytest
from hypothesis import settings

# Before NumPy loads: two workers with two BLAS threads each would fight for two cores, and another
# number of threads may sum in another order.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["MPLBACKEND"] = "Agg"

# The wheel's own tests need an installed wheel and no checkout: `.ci/run` copies them out and runs them there.
collect_ignore = ["wheel"]

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whatever asks for the `benchmark` fixture, so that `-m "not benchmark"` leaves it out."""
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes make no test id: unreadable, and some (a gzip header holds the time) differ between two workers."""
    return argname if isinstance(val, bytes) else None
