"""The commands, a file each. `jaxdyn.cli` runs them."""
