"""`depi demo`: the whole pipeline on an embedded Hub, offline, in a few minutes on two cores.

Every step runs the command that a user types, in a process of its own, against the embedded Hub: first what
becomes of a community's datasets, then what a hobbyist does with one robot. `run` is the verb, `community`
and `hobbyist` are the steps, `summary` is the page at the end.
"""
