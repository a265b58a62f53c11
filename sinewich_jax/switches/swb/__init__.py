"""The ``.swb`` file: an append-only log of blobs, indexes and commit marks, read by NumPy alone.

From the bottom: ``log`` and ``log_file`` know records, checksums and locks, and nothing of what is
in them; ``entries``, ``records`` and ``fields`` how arrays and rows lie in a record; ``header``,
``index`` and ``stored_router`` what the base, a task and the router say of themselves.
:mod:`sinewich_jax.switches.bank` makes a bank of it.
"""
