"""A replica that goes at once, and whoever was in it: rounds that are over count, the one under way is lost."""

from __future__ import annotations

from sim.request import Sequence
from sim.serving.replica import Replica

__all__ = ["evacuate"]


def evacuate(replica: Replica) -> list[Sequence]:
    """Book what ended at or before this instant, take everybody out in order of request id, and close for good.

    A sequence that had begun keeps what it has emitted and, wherever it goes on, reads prompt and emitted tokens anew,
    as after a preemption. The round cut short leaves no row: its time is idle time in the accounts.
    """
    leap = replica.leap
    if leap is not None:
        over = leap.over_at(replica.env.now)
        while leap.done < over:
            replica._book(leap, over)
    for number, entry in replica.entries.items():
        replica._leave(entry, entry.futures)
        if replica.fresh.pop(number, None) is None:
            entry.sequence.last_emit_ns = replica.decoded_ns
    found = sorted(replica.unfinished(), key=lambda sequence: sequence.request.id)
    for sequence in found:
        if sequence.request.id in replica.admitted:
            sequence.move_on()
    replica.close()
    return found
