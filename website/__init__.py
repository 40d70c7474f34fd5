"""Pages that `mkdocs build` generates from the catalogue, the config and the tests."""
