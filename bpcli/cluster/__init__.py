"""Work sent to the workers of a Dask cluster; the only importer of `distributed`."""
