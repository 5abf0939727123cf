"""Where the ranks of one start meet, and the ranks of an earlier start are not met again.

torchrun keeps one key-value store for all its restarts. Addresses that ended processes left there would be taken
for those of their successors, and all would wait for ever (pytorch issue 135712); its count of restarts is each
machine's own and tells starts apart on one machine only. So the first rank names the start anew, and hears from
every other rank that it knows the name.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)
POLL_S = 0.02


def meet(rank: int, size: int) -> dist.Store | None:
    """Return a store that holds nothing of an earlier start; None where there is no store that outlives one.

    Raises:
        RuntimeError: not all ranks came within ten minutes.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    kept = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT)
    start = _name_start(kept, size) if rank == 0 else _learn_start(kept, rank)
    return dist.PrefixStore(f"maesil/{start}", kept)


def _name_start(store: dist.Store, size: int) -> str:
    """Answer whoever says hello with the name of this start until every rank has used it."""
    start, answered, missing = uuid.uuid4().hex, set(), set(range(1, size))
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for rank in sorted(missing):
            if store.check([f"maesil/hello/{rank}"]):
                # an ended process may have left it; then its successor will write another
                caller = store.get(f"maesil/hello/{rank}").decode()
                if caller not in answered:
                    store.set(f"maesil/answer/{caller}", start)
                    answered.add(caller)
            if store.check([f"maesil/{start}/here/{rank}"]):
                missing.remove(rank)
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"rank {min(missing)} did not come within {TIMEOUT}")
        time.sleep(POLL_S)
    return start


def _learn_start(store: dist.Store, rank: int) -> str:
    caller = uuid.uuid4().hex
    store.set(f"maesil/hello/{rank}", caller)
    start = store.get(f"maesil/answer/{caller}").decode()
    store.set(f"maesil/{start}/here/{rank}", "")
    return start
