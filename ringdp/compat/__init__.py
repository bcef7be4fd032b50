"""Scripts written for Horovod, unchanged: `python -m ringdp.compat script.py`, or `ringdp.compat.install()` in it.

Either makes `import horovod.torch as hvd` give `ringdp.torch`. A Horovod that is installed beside it is not used: who
says `ringdp.compat` has chosen, and the two in one process would both drive MPI.
"""

from ringdp.compat.finder import install

__all__ = ["install"]
