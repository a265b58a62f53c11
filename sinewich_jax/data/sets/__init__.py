"""One module per named data set; each registers itself with ``sinewich_jax.data.registry``."""
