"""Models of Hugging Face and torch: loaded, run, saved, made narrower, exported, taken apart."""
