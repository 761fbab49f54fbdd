"""Where capture meets vLLM: hooks on the worker and its MoE layers, by adapter."""
