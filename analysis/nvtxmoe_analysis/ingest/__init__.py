"""Read many captures: here, in processes, or on a Dask cluster."""
