"""`make gpu-check`: what only a GPU can show, asked of the GPUs of this machine.

A part (parts.py) is a function in a file of its own. It runs in a process of its own under a limit (supervise.py), as
a process is of no more use after an error of CUDA, and writes each result at once (results.py). report.py makes a
report of all of them; docs/gpu-reports/README.md says what that is for. Memory, streams and events are CuPy's, and no
kernel of CuPy's is used, as those need NVRTC.
"""
