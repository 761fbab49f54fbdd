"""The polars pipeline over Nsight Systems exports: open, decode, attribute, check, write. No torch, vllm or CUDA."""
