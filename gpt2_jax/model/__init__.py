"""The architecture: from typed specs to a Flax NNX module and its parameters.

Names of arrays end in their shape, one letter per axis:

    B batch   T sequence   S cached or source sequence   D width (n_embd)   H heads   K head width
    F hidden (n_inner)   V vocabulary (padded)   L layers   N rows (B times T)
    C scored positions, or labels
"""
