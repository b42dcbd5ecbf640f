"""What is wrong with the episodes of a recording: named rules, and the verdict that they give."""
