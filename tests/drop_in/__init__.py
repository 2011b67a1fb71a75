"""Three miniature code bases, written in the styles that `MixedOp` and `patch` meet."""
