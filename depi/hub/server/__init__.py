"""The embedded Hub: a server that huggingface_hub, LeRobot and DePi talk to on machines without a network."""
