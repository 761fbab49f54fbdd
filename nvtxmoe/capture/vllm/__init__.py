"""Hook vLLM's worker and MoE layers, with one adapter per shape of vLLM."""
