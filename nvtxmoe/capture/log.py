"""Messages of capture: one logger, on standard error, each line with the process."""

from __future__ import annotations

import logging
import os

_logger = logging.getLogger("nvtxmoe")


def logger(verbose: bool = False) -> logging.Logger:
    """The logger; vLLM's own configuration leaves it alone."""
    if not _logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"nvtxmoe[{os.getpid()}] %(levelname)s: %(message)s"))
        _logger.addHandler(handler)
        _logger.propagate = False
        _logger.setLevel(logging.WARNING)
    if verbose:
        _logger.setLevel(logging.INFO)
    return _logger
