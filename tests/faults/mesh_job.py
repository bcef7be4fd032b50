"""A job on a mesh, of which rank 1 is lost: `ringdp run --elastic -n 4 mesh_job.py --steps 30`.

What is made in `elastic.run` makes the mesh again. Each rank writes to `said-PID` how it ends.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import ringdp
from ringdp import elastic
from ringdp.state import broadcast_object

STEPS = int(sys.argv[2])


def say(**what: object) -> None:
    with open(f"said-{os.getpid()}", "a") as file:
        print(json.dumps({"what": "end", "rank": ringdp.rank(), **what}), file=file)


def check(process_set: ringdp.ProcessSet, step: int) -> list[int]:
    """An exact sum over the set; its ranks."""
    mine = np.full(1000, float(2 ** ringdp.rank() + step))
    total = ringdp.allreduce(mine, op=ringdp.Sum, process_set=process_set)
    assert (total == sum(float(2**rank + step) for rank in process_set.ranks or [])).all()
    return list(process_set.ranks or [])


def main() -> None:
    ringdp.init()
    state = elastic.ObjectState(broadcast_object, ringdp.rank, step=0)
    meshes: list[ringdp.Mesh] = []

    def train(state: elastic.ObjectState) -> str:
        try:
            if meshes:
                meshes[0].add()
            else:
                meshes.append(ringdp.mesh(data=-1, model=2))
        except ringdp.UsageError as error:
            assert "needs a multiple of 2 ranks, and the job has 3: start it with 4" in str(error)
            return "no_mesh"
        groups = []
        while state.step < STEPS:
            if state.step == 10 and ringdp.rank() == 1 and not os.path.exists("killed"):
                Path("killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            mesh = meshes[0]
            groups = [check(mesh.data, state.step), check(mesh.model, state.step)]
            ringdp.barrier()
            state.step += 1
            state.commit()
            time.sleep(0.01)
        say(axes=", ".join(f"{name}={length}" for name, length in meshes[0].axes.items()), groups=groups)
        return "done"

    if elastic.run_fn(train, elastic.reset)(state) == "no_mesh":
        say(axes="no_mesh")
    sys.stdout.flush()


main()
