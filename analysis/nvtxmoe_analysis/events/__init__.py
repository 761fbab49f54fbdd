"""Decode NVTX events and journals into typed tables: metadata, steps, counts, top-k, pairs."""
