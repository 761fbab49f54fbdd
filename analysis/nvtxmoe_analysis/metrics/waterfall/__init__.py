"""Where the GPU time of MoE layers goes, in bars that add up."""
