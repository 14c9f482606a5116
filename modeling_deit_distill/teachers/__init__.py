"""Teachers: live ones, ones trained first, and what they said about each view, kept in a store."""
