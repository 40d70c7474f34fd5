"""Examples with targets: read from files, tokenized, stored as ragged columns."""
