"""A trained student in the formats of other runtimes."""
