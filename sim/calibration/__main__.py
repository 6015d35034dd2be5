"""What ``decodesim calibrate`` starts, in a process of its own whose number of threads was set before NumPy loaded.

Prints the session as JSON. Not meant to be typed.
"""

from __future__ import annotations

import json
import sys

from sim.calibration.cases import fitted, judged
from sim.calibration.probes import all_probes
from sim.calibration.session import interleaved, run
from sim.calibration.timing import Stopwatch


def main(arguments: list[str]) -> None:
    """``THREADS REPEATS WHAT``, with WHAT one of probes, fit (probes too), judge (both too)."""
    threads, repeats, what = int(arguments[0]), int(arguments[1]), arguments[2]
    cases = {"probes": [], "fit": fitted(), "judge": interleaved(fitted(), judged())}[what]
    session = run(all_probes(), cases, repeats, Stopwatch(threads > 1, 0.1 if threads > 1 else 0.01))
    sys.stdout.write(json.dumps(session.plain()))


if __name__ == "__main__":
    main(sys.argv[1:])
