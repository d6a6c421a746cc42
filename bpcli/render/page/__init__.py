"""The page of `bp report`: documents as sortable tables and figures, in one HTML file that needs nothing else."""
