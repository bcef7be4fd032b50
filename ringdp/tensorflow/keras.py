"""Horovod's other name for its Keras package: `import ringdp.tensorflow.keras as hvd` gives `ringdp.keras`."""

import sys

import ringdp.keras
import ringdp.keras.callbacks

# The import system takes what it finds here afterwards: both names are one module.
sys.modules[__name__] = ringdp.keras
sys.modules[f"{__name__}.callbacks"] = ringdp.keras.callbacks
