"""What `jaxdyn reproduce` runs: each claim about skew-symmetric networks, measured afresh."""
