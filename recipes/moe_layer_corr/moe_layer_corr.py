"""GPU time of every (rank, step, layer) beside its routing, and the layers' models."""

from nvtxmoe_recipe import MoeRecipe


class MoeLayerCorr(MoeRecipe):
    """See the module."""

    tables = (
        "moe_layer_timings",
        "moe_kernel_timings",
        "moe_layer_correlation",
        "moe_layer_model",
    )
    documents = ("moe_layer_model",)
