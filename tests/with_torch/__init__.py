"""Tests that import torch: tests/capture/test_with_torch.py runs them with the Python of vLLM's environment."""
