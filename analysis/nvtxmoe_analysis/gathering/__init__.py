"""The map of ``analyze``: the facts of many reports, here, in processes of this machine, or on a Dask cluster."""
