"""What runs inside vLLM's processes: hooks, the recorder, and its two sinks (NVTX, and files without nsys).

Serving is sacred: every hook fails open, and nothing here waits for the device.
"""
