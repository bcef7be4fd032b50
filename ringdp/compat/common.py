"""Stands for the package `horovod.common`, which has no names of its own."""

__path__: list[str] = []
