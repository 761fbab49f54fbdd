"""How often each expert was chosen: the standard set of analyze, and the other tables that need no GPU time."""

from nvtxmoe_recipe import MoeRecipe


class MoeExpertSum(MoeRecipe):
    """See the module."""

    tables = (
        "moe_expert_activations",
        "moe_expert_coselection",
        "moe_routing_weights_hist",
        "moe_load_imbalance",
        "moe_step_activations",
        "moe_balance_metrics",
        "moe_capacity",
        "moe_cross_layer",
        "moe_cross_layer_paths",
    )
    documents = ("moe_summary",)
