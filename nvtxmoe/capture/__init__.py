"""Capture inside vLLM's processes: hooks, the recorder and its two sinks (NVTX, and files without nsys).

Serving comes first: a failing hook never reaches vLLM, and nothing here waits for the device.
"""
