"""Public data sets -> the JSONL layouts of `vlm_core.data`. One file a format; `vlm convert` calls them."""
