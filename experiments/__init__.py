"""Published claims, measured; not part of the package."""
