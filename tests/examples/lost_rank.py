"""A training that fails on rank 0, while rank 1 is busy elsewhere and does not come to the reset."""

import os
import time

import ringdp.torch as hvd

os.environ["RINGDP_TIMEOUT"] = "3"
hvd.init()
state = hvd.elastic.ObjectState(hvd.broadcast_object, hvd.rank, batch=0)


@hvd.elastic.run
def train(state):
    state.batch = 1
    state.commit()
    if hvd.rank() == 1:
        time.sleep(100)
    raise hvd.HorovodInternalError("a fault")


train(state)
