"""``nvtxmoe profile``: a command run so that its capture is whole, and what comes out of it.

Nothing here is imported inside vLLM's processes.
"""
