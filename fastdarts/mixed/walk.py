"""The modules of a network, quickly: `nn.Module.modules` names all of a search network's 8,000 on its way."""

from torch import nn


def modules_of(network: nn.Module) -> list[nn.Module]:
    """The network and all modules inside, level by level; a module that is used twice may stand there twice."""
    found = [network]
    for module in found:  # which grows meanwhile
        if children := module._modules:  # most have none
            found += [child for child in children.values() if child is not None]
    return found
