"""`depi collect-ids`: list the Hub's SO-100 and SO-101 datasets, inspect, judge, write the lists."""
