"""How large the buckets are in which gradients are exchanged, for all frameworks."""

from __future__ import annotations

import os

from ringdp.errors import UsageError

MIB = 1 << 20
BUCKET_BYTES = 25 * MIB  # unless RINGDP_BUCKET_BYTES or an argument says
FIRST_BYTES = MIB  # the first bucket is small, so that the exchange starts early
BUCKET_VARIABLE = "RINGDP_BUCKET_BYTES"

# A bucket beyond these many bytes leaves the caches before it is exchanged, so gradients need not enter them on their
# way in; for smaller gradients the plain copy is as fast (csrc/kernels/copy.h has the figures).
BEYOND_CACHES = 4 << 20
LARGE_GRADIENT = 128 << 10


def default_bucket_bytes() -> int:
    """What RINGDP_BUCKET_BYTES says, else 25 MiB.

    Raises:
        UsageError: it is no number of bytes.
    """
    text = os.environ.get(BUCKET_VARIABLE) or str(BUCKET_BYTES)
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise UsageError(f"{BUCKET_VARIABLE}={text} is not a number of bytes from 1")
    return value
