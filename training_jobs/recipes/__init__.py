"""How versions are trained, one file per recipe, each to be read from top to bottom."""
