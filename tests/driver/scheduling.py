"""Which worker of pytest-xdist runs which tests: each the next one, but for files that stay together.

Those come first. xdist's own mark for it, xdist_group, has no effect with pytest 9.2.
"""

from xdist.scheduler import LoadScopeScheduling

TOGETHER = (
    "gpu/test_gpu_check.py",  # runs of make gpu-check, which have one folder of logs
)


class Scheduling(LoadScopeScheduling):
    """What has one scope goes to one worker, and the scope of most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith(TOGETHER) else nodeid
