"""How a worker speaks with `peers.py`: a job on its first line, then a number of agents per line.

The standard library alone, since each worker runs in an environment of its own.
"""

import json
import os
import sys
from time import perf_counter, process_time


def serve(load):
    """Load what a job names, warm up, and run as often as asked.

    Args:
        load: Takes the job; gives what it is, and a function from a number of agents to the ids
            that each of them writes.
    """
    # What libraries print goes to the terminal, whoever prints it.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    about, write = load(json.loads(sys.stdin.readline()))
    write(1)
    tell({"ready": about})
    for line in sys.stdin:
        began, busy = perf_counter(), process_time()
        written = write(int(line))
        seconds, work = perf_counter() - began, process_time() - busy
        tell({"seconds": seconds, "cpu_seconds": work, "written": written})
