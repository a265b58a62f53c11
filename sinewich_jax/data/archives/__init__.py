"""Published archives of dense labels, read from a user's own copy.

Nothing is downloaded and nothing is written beside the data. A folder or a tar is prepared once
into our cache (``SINEWICH_CACHE``), split by split, and read from there::

    import sinewich_jax as sj

    source = sj.data.load("nyud_mt", "train", data_dir="/data/NYUD_MT.tgz", tasks=("depth", "edge"))
    source[0]["labels"]["depth"], source[0]["valid"]["depth"]

| file | what it knows |
|---|---|
| `tree`, `tar` | a folder or a tar behind one interface |
| `decode`, `parts`, `edges`, `units` | one file, one annotation, one rule each |
| `reader`, `lists` | what every layout's reader does |
| `pascal`, `nyud`, ... | one layout each: its folders, numbers and traps |
| `layouts` | which layouts there are and where a data set begins |
| `records`, `builder`, `source` | TFDS: what is stored, preparing it, and reading it back |
| `check` | what `sinewich data check` finds |

A new layout is a reader, a line in `layouts.READERS`, a class in `builder`, and a module in
``sinewich_jax/data/sets``.
"""
