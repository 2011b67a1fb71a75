"""List the modules of a network fast: `nn.Module.modules` builds the names of all 8,000 of a search network."""

from torch import nn


def modules_of(network: nn.Module) -> list[nn.Module]:
    """Return the network and all modules inside, level by level; a module that is used twice may be listed twice."""
    found = [network]
    for module in found:  # the loop also visits modules appended to `found` in its body
        if children := module._modules:  # most have none
            found += [child for child in children.values() if child is not None]
    return found
