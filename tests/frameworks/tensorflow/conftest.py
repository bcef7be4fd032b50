"""See tests/frameworks/conftest.py. Most tests do what they do eagerly and inside tf.function: fixture `way`."""

import os
from importlib.util import find_spec

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

collect_ignore_glob = [] if find_spec("tensorflow") else ["ranks_*.py", "test_*.py"]


@pytest.fixture(scope="session")
def _job(_job):
    import tensorflow as tf

    # Of rank 0 one thread for all nodes of a graph, of the others two: what could be run in another order is.
    import ringdp

    tf.config.threading.set_inter_op_parallelism_threads(1 if ringdp.rank() == 0 else 2)
    tf.config.threading.set_intra_op_parallelism_threads(1)


@pytest.fixture(params=["eager", "compiled"])
def way(request):
    """Calls a function with tensors: as it is, or in tf.function."""
    import tensorflow as tf

    def call(function, *args):
        return function(*args) if request.param == "eager" else tf.function(function)(*args)

    return call
