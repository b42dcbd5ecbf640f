"""All that talks to a Hub: the client, and an embedded Hub for machines without a network."""
