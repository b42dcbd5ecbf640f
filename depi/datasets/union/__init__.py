"""Many datasets as one: each opened and checked, indexed together, read by position."""
