"""What is drawn for training: in which order, from which episodes, with which texts and advantages."""
