"""JAX on the CPU, one device, whatever else there is."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
