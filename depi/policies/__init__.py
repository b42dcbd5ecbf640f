"""The LeRobot face of DePi's models.

`configuration` describes a policy, `pi0` is the policy, `processors` prepare its batches, `convert`
translates weights between DePi's names and LeRobot's, `checkpoint` reads and writes folders.
"""
