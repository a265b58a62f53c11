"""One file per merge rule; every module in this folder is imported when rules are looked up.

A rule is a function ``rule(leaf, *, option=default) -> array`` with the decorator
:func:`sinewich_jax.merging.registry.register`; what it gets is described in
:class:`sinewich_jax.merging.registry.Leaf`.
"""
