"""Models by name: the catalogue, the hub, the package index."""
