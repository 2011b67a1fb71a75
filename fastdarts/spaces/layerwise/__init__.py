"""Chains of inverted residual blocks, one choice a layer: the spaces of ProxylessNAS, FBNet and FairNAS."""
