"""Read LeRobot datasets of any version in place, and many of them as one training set."""
