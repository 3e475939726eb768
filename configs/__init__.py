"""One YAML per preset, all stages in one file."""
