"""What `mkdocs build` generates of the catalogue, the config and the tests."""
