"""Devices and processes that train together: the mesh, the layout of the state, and agreement."""
