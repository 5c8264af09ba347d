"""Adapters to other libraries: a few lines each on the library's own model; each imports its library when imported."""
