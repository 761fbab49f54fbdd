"""How far the experts' kernels are from what the GPU can do, from measured routing."""
