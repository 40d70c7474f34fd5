"""Planning: compiles the train step for hardware that need not be there, and estimates its cost."""
