"""The report of `patch`: what it replaced, what it left, and afterwards how its modules ran."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from fastdarts.mixed.patching.recognition import OWN


@dataclass
class Calls:
    """Count the calls of a patched module, fused and not."""

    fused: int = 0
    """Calls in which kernels computed at least a part of the sum."""
    plain: Counter[str] = field(default_factory=Counter)
    """The other calls, by the reason why the modules computed them."""

    @property
    def total(self) -> int:
        """All calls."""
        return self.fused + sum(self.plain.values())

    def __str__(self) -> str:
        reasons = [f"{count} not: {reason}" for reason, count in self.plain.items()]
        return "; ".join([f"{self.fused} of {self.total} calls ran fused", *reasons])


@dataclass(frozen=True)
class PatchReport:
    """List what `patch` did, by module name ("" is the model itself). As a string it says the same in words."""

    replaced: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The primitives of each mixed operation that now runs fused, `OWN` for ops that their own modules compute."""
    left: dict[str, str] = field(default_factory=dict)
    """Modules that hold candidate operations and were left as they are, and why."""
    untried: dict[str, str] = field(default_factory=dict, compare=False)
    """Replaced modules whose forward no trial could call, and why; `calls` tells how they run."""
    nearest: dict[str, str] = field(default_factory=dict, compare=False)
    """Modules that hold no candidate operation, but modules like them, and what sets those apart."""
    modules: dict[str, nn.Module] = field(default_factory=dict, compare=False, repr=False)
    """The replaced modules."""

    def calls(self) -> dict[str, Calls]:
        """Return how often each replaced module has run since it was patched, fused or not, and why not."""
        return {name: module.__dict__.get("_fastdarts_calls", Calls()) for name, module in self.modules.items()}

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} mixed operations replaced, {len(self.left)} left"]
        found = {
            "replaced": {name: _in_words(primitives) for name, primitives in self.replaced.items()},
            "untried": self.untried,
            "left": self.left,
        }
        if not self.replaced and not self.left:
            lines.append(
                "looked for modules whose forward adds up the weighted outputs of candidate operations that they hold "
                "(in a ModuleList, a ModuleDict, or by name), with the layers of the primitives of fastdarts"
            )
            found["nearest"] = self.nearest
        for title, texts in found.items():
            for text in dict.fromkeys(texts.values()):
                names = [name or "the model itself" for name in texts if texts[name] == text]
                some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                lines.append(f"{title}: {some}: {text}")
        return "\n".join(lines)


def _in_words(primitives: Sequence[str]) -> str:
    own = [str(column) for column, primitive in enumerate(primitives) if primitive == OWN]
    kept = f"; by their own modules: ops {', '.join(own)}" if own else ""
    return ", ".join(primitive for primitive in primitives if primitive != OWN) + kept
