"""``python -m nvtxmoe``."""

from nvtxmoe.cli import main

main()
