"""Which feature of the routing explains a layer's GPU time: robust regression, choice of a feature, plain words."""
