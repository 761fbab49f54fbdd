"""GPU time of every (rank, step, layer) beside its routing, and the layers' models."""

from nvtxmoe_recipe import MoeRecipe


class MoeLayerCorr(MoeRecipe):
    """See the module."""
